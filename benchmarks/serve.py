"""Serving: a student and its teacher in the same vLLM, and in the same llama.cpp.

    OMP_NUM_THREADS=1 python benchmarks/serve.py --model FOLDER [--engines vllm llama.cpp] [--contexts 1024 8192] \
           [--batches 1 8 32] [--layers 30] [--threads 1] [--own-texts] [--json]

`--model` is a folder of an attention model that students start from. The student has random time mixers, which decides
nothing about speed. Every model of an engine runs in a process of its own; in vLLM both take turns, and a ratio is the
median over rounds of the ratios within a round. Of each context the first sequence is read whole, which is the time to
the first token. The others of a batch share its text: vLLM finds its keys and values, or its state, in the prefix
cache, and llama.cpp copies it. That favours the teacher, whose sequences then read the same keys and values, a part of
which stays in the processor's cache; with `--own-texts` each sequence in vLLM has keys and values of its own. After a
token of its own each sequence decodes `--tokens` more, and the median step counts. Bytes of a sequence are those of its
keys and values, or of its states, in the engine's own layout.

llama.cpp computes several sequences of a student's kind wrongly, so a student runs alone there.
"""

import dataclasses
import functools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from arwkv_store.commands.command_line import main
from figures import print_table, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

STATE_BLOCK_TOKENS = 1024
"""vLLM keeps a state for each block of a prefix, so a student's blocks are long."""
LARGEST_LLAMA_CONTEXT = 1 << 17
"""Of all sequences together: llama.cpp reserves their keys and values at once."""


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Tokens/s, time to the first token and memory of a student and its teacher in vLLM and llama.cpp."""

    model: Path
    """Folder of the teacher: a base that students start from."""
    preset: str = "arwkv"
    """Of the student."""
    engines: tuple[str, ...] = ("vllm", "llama.cpp")
    """Which to measure."""
    contexts: tuple[int, ...] = (1024, 8192)
    """Tokens already read; multiples of 1,024."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Sequences at a time."""
    tokens: int = 12
    """Steps that are timed, in each round."""
    rounds: int = 5
    """Turns of each model in vLLM."""
    own_texts: bool = False
    """In vLLM no sequences share a text; reading them all takes longer."""
    layers: int = 0
    """Layers of both, from the first on; 0: all."""
    threads: int = 1
    """Threads of each engine."""
    dtype: str = "bfloat16"
    """Of both, in vLLM; llama.cpp takes f16."""
    json_out: Path | None = None
    """Write the figures there too."""
    json: bool = False
    """Print the figures as one JSON document."""


def serve(config: ServeConfig) -> dict[str, Any]:
    """Measure every engine and print one table."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = _models(config, Path(scratch))
        for engine in config.engines:
            found = (_vllm if engine == "vllm" else _llama_cpp)(config, folders)
            rows += [{"engine": engine, **row} for row in found]
            print(f"{engine}: done", file=sys.stderr, flush=True)
    if not config.json:
        print_table(f"{config.model.name}, {config.preset}, {config.threads} threads", rows)
    write_json(config.json_out, {"rows": rows})
    return {"rows": rows}


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _models(config: ServeConfig, scratch: Path) -> dict[str, Path]:
    """The teacher with so many layers, and a student of it with time mixers in the place of all attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from arwkv_student.bases.checkpoint import open_base
    from arwkv_student.bases.convert import convert, student_config
    from arwkv_student.bases.tokenizer import copy_tokenizer

    teacher, student = scratch / "teacher", scratch / "student"
    changes = {"num_hidden_layers": config.layers} if config.layers else {}
    shape = AutoConfig.from_pretrained(config.model, max_position_embeddings=max(config.contexts) + 1024, **changes)
    AutoModelForCausalLM.from_pretrained(config.model, config=shape, dtype=torch.bfloat16).save_pretrained(teacher)
    copy_tokenizer(config.model, teacher)
    torch.manual_seed(0)
    base = open_base(str(teacher))
    convert(base, student_config(base, config.preset, {})).model.to(torch.bfloat16).save_pretrained(student)
    copy_tokenizer(config.model, student)
    return {"teacher": teacher, "student": student}


def _prompts(context: int, sequences: int, own_texts: bool = False) -> list[list[int]]:
    """Texts that differ in their last token alone, or in every token."""
    texts = range(sequences) if own_texts else [0] * sequences
    return [
        [*(3 + (7 * place + place // 11 + 13 * text) % 400 for place in range(context)), 3 + number]
        for number, text in enumerate(texts)
    ]


def _vllm(config: ServeConfig, folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Both models take turns, so that other work on the machine slows both."""
    rows = []
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_process()) for name in folders}

        def measured(context: int, batch: int) -> dict[str, Measured]:
            """Of both models, one after the other."""
            return {
                name: process.submit(_vllm_turn, config, name, folders[name], context, batch).result()
                for name, process in processes.items()
            }

        for context in config.contexts:
            first = measured(context, 0)
            for batch in config.batches:
                rounds = [measured(context, batch) for _ in range(config.rounds)]
                ratio = statistics.median(turn["teacher"].step_s / turn["student"].step_s for turn in rounds)
                for name, read in first.items():
                    step_s = statistics.median(turn[name].step_s for turn in rounds)
                    row = _row(name, context, batch, read.first_s, step_s, read.size_bytes)
                    rows.append({**row, "of the teacher's": ratio if name == "student" else None})
    return rows


class Measured(NamedTuple):
    """One turn of a model."""

    first_s: float
    """Until every sequence has a token."""
    step_s: float
    """The median step after that."""
    size_bytes: int
    """Of one sequence."""


@functools.cache
def _vllm_engine(config: ServeConfig, name: str, folder: Path) -> Any:
    """The engine of this process."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.threads),
    }  # fmt: skip
    import vllm

    from arwkv_student.serving.plugin import register

    register()
    blocks = {"block_size": STATE_BLOCK_TOKENS} if name == "student" else {}
    llm = vllm.LLM(
        model=str(folder), dtype=config.dtype, enforce_eager=True, enable_prefix_caching=True, disable_log_stats=True,
        max_model_len=max(config.contexts) + 512, max_num_seqs=max(config.batches),
        max_num_batched_tokens=STATE_BLOCK_TOKENS, **blocks,
    )  # fmt: skip
    _vllm_steps(llm.llm_engine, _prompts(64, 2), 4)  # compiles, and touches what is slow only once
    return llm.llm_engine


def _vllm_turn(config: ServeConfig, name: str, folder: Path, context: int, batch: int) -> Measured:
    """Read one text whole (batch 0), or decode a batch whose texts were read before."""
    engine = _vllm_engine(config, name, folder)
    if batch:
        prompts = _prompts(context, batch + 1, config.own_texts)[1:]
        if config.own_texts:
            for prompt in prompts:
                _vllm_steps(engine, [prompt], 1)
        return Measured(*_vllm_steps(engine, prompts, config.tokens), 0)
    first_s, step_s = _vllm_steps(engine, _prompts(context, 1), 1)
    return Measured(first_s, step_s, _vllm_bytes(engine, context))


def _vllm_steps(engine: Any, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
    """Seconds until every sequence has a token, and of the median step after that."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=tokens + 2, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    for number, ids in enumerate(prompts):
        engine.add_request(f"{started}-{number}", TokensPrompt(prompt_token_ids=ids), sampling)
    begun: set[str] = set()
    while len(begun) < len(prompts):
        begun |= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
    first_s, steps = time.perf_counter() - started, []
    while engine.has_unfinished_requests():
        before = time.perf_counter()
        done = engine.step()
        if sum(not output.finished for output in done) == len(prompts):
            steps.append(time.perf_counter() - before)
    return first_s, statistics.median(steps or [first_s])


def _vllm_bytes(engine: Any, context: int) -> int:
    """Of one sequence: whole blocks of keys and values, or one state, in all layers."""
    groups = engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups
    total = 0
    for group in groups:
        spec = group.kv_cache_spec
        constant = type(spec).__name__ == "MambaSpec"
        blocks = 1 if constant else -(-(context + 1) // spec.block_size)
        total += len(group.layer_names) * blocks * spec.page_size_bytes
    return total


def _llama_cpp(config: ServeConfig, folders: dict[str, Path]) -> list[dict[str, Any]]:
    rows = []
    for name, folder in folders.items():
        with _process() as process:
            rows += process.submit(_llama_cpp_rows, config, name, folder).result()
    return rows


def _llama_cpp_rows(config: ServeConfig, name: str, folder: Path) -> list[dict[str, Any]]:
    from llama_cpp import LlamaCpp

    file = folder.parent / f"{name}.gguf"
    if name == "student":
        from arwkv_student.export.gguf_file import export_gguf
        from arwkv_student.settings import ExportSettings

        export_gguf(ExportSettings(model=str(folder), out=file, dtype="f16"))
    else:
        from llama_gguf import write_llama

        write_llama(folder, file)
    rows = []
    for context in config.contexts:
        for batch in config.batches if name == "teacher" else (1,):
            room = batch * (context + 256)  # it gives each sequence an equal part
            if room > LARGEST_LLAMA_CONTEXT:
                continue
            with LlamaCpp(file, sequences=batch, context_tokens=room, threads=config.threads) as loaded:
                first_s, step_s, size_bytes = loaded.timed(_prompts(context, batch), config.tokens)
            rows.append(_row(name, context, batch, first_s, step_s, size_bytes))
    return rows


def _row(name: str, context: int, batch: int, first_s: float, step_s: float, size_bytes: int) -> dict[str, Any]:
    return {
        "model": name,
        "context": context,
        "batch": batch,
        "tokens/s": batch / step_s,
        "ms/step": 1e3 * step_s,
        "first token, s": first_s,
        "MB/sequence": size_bytes / 1e6,
    }


if __name__ == "__main__":
    main("serve", "Student against teacher in the same servers.", serve)
