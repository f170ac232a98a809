"""What capture costs beside the prefill itself, and beside vLLM's own prompt_logprobs; arms interleaved in one run.

python benchmarks/capture.py [--vocabulary 2048] [--tokens 8192] [--rounds 3] [--layers 2] [--json] [--json-out FILE]

A model of Qwen2.5-0.5B's width with random weights and few layers, so that head and capture weigh more than they would
in the real one. Each arm is a process with an engine of its own; they take turns, and medians of the rounds are given.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

TOP_K = 64
ARMS = {
    "prefill": "the model's layers only",
    "prefill + head": "and every token's logits, of which nothing is kept",
    "capture top-64": "what the producer keeps, without hidden states",
    "capture top-64 + attention": "and the attention outputs of all layers",
    "end to end": "the same, encoded and written as shards",
    "stock, flat": "vLLM's prompt_logprobs=64 with flat_logprobs=True, detokenize=False",
    "stock": "vLLM's prompt_logprobs=64 as it comes",
}


def main() -> None:
    """Run the arms and print a table."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        model = _make_model(Path(folder) / "model", options)
        chosen = [arm for arm in ARMS if arm in options.arms]
        connections, processes = [], []
        for arm in chosen:
            here, there = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=_serve_arm, args=(arm, str(model), folder, vars(options), there)
            )
            process.start()
            assert here.recv() == "ready", arm
            connections.append(here)
            processes.append(process)
        seconds: dict[str, list[tuple[float, float]]] = {arm: [] for arm in chosen}
        for _ in range(options.rounds):
            for arm, connection in zip(chosen, connections, strict=True):
                connection.send("go")
                seconds[arm].append(connection.recv())
        for connection, process in zip(connections, processes, strict=True):
            connection.send("stop")
            process.join()
    rates = {arm: options.tokens / statistics.median(wall for wall, _ in taken) for arm, taken in seconds.items()}
    # The least of the rounds: what other work on the machine adds to CPU time, it only ever adds.
    cpu_ms = {arm: min(cpu for _, cpu in taken) / options.tokens * 1e6 for arm, taken in seconds.items()}
    document = {"options": vars(options), "tokens_per_s": rates, "cpu_ms_per_1k_tokens": cpu_ms}
    if options.json_out:
        options.json_out.write_text(json.dumps(document, indent=2, default=str))
    if options.json:
        print(json.dumps(document, indent=2, default=str))
    else:
        _print_table(options, rates, cpu_ms)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of one round")
    parser.add_argument("--length", type=int, default=256, help="tokens of one prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--json-out", type=Path)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _make_model(folder: Path, options: argparse.Namespace) -> Path:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 38 // 7,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 64 // 7 or 1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype=options.dtype,
    )
    Qwen2ForCausalLM(config).to(getattr(torch, options.dtype)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(options.vocabulary)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def _serve_arm(arm: str, model: str, folder: str, options: dict[str, Any], connection: Connection) -> None:
    """In the arm's process: start its engine, then run one round per message and answer its seconds."""
    from arwkv_producer.teacher.vllm_setup import prepare_environment

    prepare_environment(1, False)  # before torch loads: it reads how idle threads wait
    generator = np.random.default_rng(1)
    count = options["tokens"] // options["length"]
    prompts = [generator.integers(0, options["vocabulary"], options["length"], dtype=np.int32) for _ in range(count)]
    run = _stock(arm, model, options) if arm.startswith("stock") else _ours(arm, model, folder, options)
    run(prompts[:2])
    connection.send("ready")
    while connection.recv() == "go":
        began, began_cpu = time.perf_counter(), time.process_time()
        run(prompts)
        connection.send((time.perf_counter() - began, time.process_time() - began_cpu))


Run = Callable[[list[Any]], None]


def _ours(arm: str, model: str, folder: str, options: dict[str, Any]) -> Run:
    from arwkv_producer.teacher.capture import CaptureSettings
    from arwkv_producer.teacher.engine import TeacherEngine
    from arwkv_producer.teacher.vllm_setup import EngineConfig

    layers = tuple(range(options["layers"])) if arm in ("capture top-64 + attention", "end to end") else ()
    top_k = 0 if arm == "prefill" else TOP_K
    if arm == "prefill + head":
        _keep_nothing()
    engine = TeacherEngine(
        EngineConfig(
            model=model, architecture="Qwen2ForCausalLM", dtype=options["dtype"], max_length=options["length"]
        ),
        CaptureSettings(
            top_k=top_k,
            vocab_size=options["vocabulary"],
            attention_layers=layers,
        ),
    )
    if arm == "end to end":
        return _writing(engine, folder, layers, options)
    return lambda prompts: list(engine.capture(prompts, range(len(prompts)))) and None


def _keep_nothing() -> None:
    """Let the pooler compute logits and look at none of them."""
    import torch

    from arwkv_producer.numerics.distribution import Distribution
    from arwkv_producer.teacher import capture_models

    def summarize(logits: torch.Tensor, k: int, next_ids: torch.Tensor, **others: Any) -> Distribution:
        rows = len(logits)
        empty, numbers = torch.zeros(rows, 1), torch.zeros(rows)
        return Distribution(empty.int(), empty, numbers, numbers, numbers, empty.int())

    capture_models.summarize = summarize


def _writing(engine: Any, folder: str, layers: tuple[int, ...], options: dict[str, Any]) -> Run:
    """Four parts a round, encoded and written while the next is captured, as the producer does."""
    import shutil

    from arwkv_producer.check.samples import to_sample
    from arwkv_producer.run.shard_queue import ShardQueue
    from arwkv_store import CaptureInfo, CorpusInfo, DatasetInfo, TeacherInfo, TokenizerInfo, create_dataset

    per_part = max(options["tokens"] // options["length"] // 4, 1)
    names = ("ids", "logprobs", "tail_logprob", "entropy", "true_logprob", *(f"attn.{layer}" for layer in layers))
    info = DatasetInfo(
        teacher=TeacherInfo(
            model="bench",
            model_type="qwen2",
            hidden_size=options["width"],
            num_hidden_layers=options["layers"],
            dtype=options["dtype"],
        ),
        tokenizer=TokenizerInfo(hash="none", vocab_size=options["vocabulary"]),
        vocab_size_padded=options["vocabulary"],
        capture=CaptureInfo(top_k=TOP_K, hidden_states="attention", layers=layers, max_length=options["length"]),
        corpus=CorpusInfo(
            fingerprint="none", samples=4 * per_part, tokens=options["tokens"], samples_per_part=per_part, parts=4
        ),
    )

    def run(prompts: list[Any]) -> None:
        out = Path(folder) / "shards"
        shutil.rmtree(out, ignore_errors=True)
        mask = np.ones(options["length"], np.bool_)
        with ShardQueue(create_dataset(str(out), info), lambda manifest: None, writers=2) as shards:
            for part in range(len(prompts) // per_part):
                ids = range(part * per_part, (part + 1) * per_part)
                answers = engine.capture([prompts[i] for i in ids], ids)
                samples = [
                    to_sample(i, prompts[i], mask, "bench", rows, names, info.capture)
                    for i, rows in zip(ids, answers, strict=True)
                ]
                shards.put(part, samples)

    return run


def _stock(arm: str, model: str, options: dict[str, Any]) -> Run:
    import vllm

    engine = vllm.LLM(
        model=model,
        dtype=options["dtype"],
        max_model_len=options["length"] + 8,
        max_num_batched_tokens=4096,
        max_num_seqs=256,
        max_logprobs=TOP_K,
        enable_prefix_caching=False,
        enforce_eager=True,
        hf_overrides={"head_dtype": "float32"},
        disable_log_stats=True,
    )
    fast = {"flat_logprobs": True, "detokenize": False} if arm == "stock, flat" else {}
    parameters = vllm.SamplingParams(max_tokens=1, prompt_logprobs=TOP_K, temperature=0.0, **fast)

    def run(prompts: list[Any]) -> None:
        engine.generate([{"prompt_token_ids": prompt.tolist()} for prompt in prompts], parameters, use_tqdm=False)

    return run


def _print_table(options: argparse.Namespace, rates: dict[str, float], cpu_ms: dict[str, float]) -> None:
    print(f"V = {options.vocabulary:,}, C = {options.width}, {options.layers} layers, {options.dtype}")
    print("| arm | tokens/s | of prefill + head | least CPU ms per 1k tokens | of prefill + head |")
    print("|---|---|---|---|---|")
    base, base_cpu = rates.get("prefill + head"), cpu_ms.get("prefill + head")
    for arm, rate in rates.items():
        wall = f"{rate / base:.2f}×" if base else ""
        cpu = f"{cpu_ms[arm] / base_cpu:.2f}×" if base_cpu else ""
        print(f"| {arm} | {rate:,.0f} | {wall} | {cpu_ms[arm]:,.0f} | {cpu} |")


if __name__ == "__main__":
    main()
