"""Students in vLLM, held against transformers' `generate`."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from tiny_bases import tiny_base
from transformers import AutoTokenizer

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.model.loading import load_student

NEW_TOKENS = 24
LENGTHS = (1, 2, 5, 15, 16, 17, 33, 64, 65, 130)
"""Of the prompts of one batch."""
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_WAIT_POLICY": "passive",
}
STUDENTS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...] | None]] = {
    "arwkv": ("qwen2", "arwkv", {}, None),
    "gate and group norm": ("llama", "arwkv-gate-active-mlp", {"output_norm": "group"}, None),
    "rad-rwkv7": ("qwen2", "rad-rwkv7", {}, None),
    "hybrid": ("qwen2", "arwkv", {}, (1,)),
    "hybrid with q/k norms": ("qwen3", "rad-rwkv7", {}, (0,)),
    "hybrid with norms behind": ("olmo2", "arwkv", {}, (0,)),
    "windowed hybrid": ("mistral", "arwkv", {}, (1,)),
}


def student_folder(name: str, teacher: Path, folder: Path, key_value_heads: int = 1) -> Path:
    """A student in fp32, C=64, every weight moved off its start; `key_value_heads`: of bases with heads of 32."""
    family, preset, overrides, layers = STUDENTS[name]
    heads = {"head_dim": 32} if family in ("qwen2", "olmo2") else {}
    wide = {"num_attention_heads": 2, "num_key_value_heads": key_value_heads} if heads else {}
    base = open_base(str(tiny_base(family, teacher, folder / "base", **wide)))
    torch.manual_seed(1)
    overrides = overrides if preset == "rad-rwkv7" else {**heads, "head_dim": 32, **overrides}
    student = convert(base, student_config(base, preset, overrides, layers)).model
    for parameter in student.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    student.save_pretrained(folder / "run")
    copy_tokenizer(base.folder, folder / "run")
    return folder / "run"


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 500, (length,), generator=generator).tolist() for length in LENGTHS]


def said_by_transformers(run: Path, asked: Sequence[Sequence[int]], tokens: int = NEW_TOKENS) -> list[list[int]]:
    student = load_student(run).eval()
    said = []
    for ids in asked:
        out = student.generate(
            torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
            suppress_tokens=list(range(500, 544)),
        )  # fmt: skip
        said.append(out[0, len(ids) :].tolist())
    return said


@pytest.fixture
def vllm_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    yield
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def engine(run: Path, **arguments: Any) -> Any:
    import vllm

    from arwkv_student.serving.plugin import register

    register()
    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}
    return vllm.LLM(model=str(run), disable_log_stats=False, **defaults | arguments)


def said_by_vllm(llm: Any, asked: Sequence[Sequence[int]], tokens: int = NEW_TOKENS) -> tuple[list[list[int]], int]:
    """Greedy tokens of each prompt, and how many prompt tokens came from the prefix cache."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=list(ids)) for ids in asked], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs], sum(out.num_cached_tokens for out in outputs)


IN_A_PROCESS_OF_ITS_OWN = """
import json, sys
from pathlib import Path
from test_serving import engine, prompts, said_by_vllm
print(json.dumps(said_by_vllm(engine(Path(sys.argv[1]), max_num_batched_tokens=33), prompts())[0]))
"""
"""vLLM looks at every module of its process, and modules that other tests import (Flask's) do not stand that."""


def test_vllm_says_what_transformers_says(python_with_vllm: list[str], tiny_teacher: Path, tmp_path: Path) -> None:
    """A hybrid, ragged prompts, in chunks of 33 tokens, several sequences in each batch."""
    run = student_folder("hybrid", tiny_teacher, tmp_path)
    environment = os.environ | QUIET
    words = [*python_with_vllm, "-c", IN_A_PROCESS_OF_ITS_OWN, str(run)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == said_by_transformers(run, prompts())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("vllm_environment")
@pytest.mark.parametrize("chunk", [33, 64])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_kind_of_student_is_the_same_in_vllm(name: str, chunk: int, tiny_teacher: Path, tmp_path: Path) -> None:
    run = student_folder(name, tiny_teacher, tmp_path)
    llm = engine(run, max_num_batched_tokens=chunk, enable_prefix_caching=True)
    expected = said_by_transformers(run, prompts())
    assert said_by_vllm(llm, prompts())[0] == expected
    again, cached = said_by_vllm(llm, prompts())
    assert again == expected
    assert cached > 0


ON_TWO_DEVICES = """
import json, sys
from pathlib import Path
from test_serving import engine, prompts, said_by_vllm
if __name__ == "__main__":
    llm = engine(Path(sys.argv[1]), max_num_batched_tokens=33, tensor_parallel_size=2)
    print(json.dumps(said_by_vllm(llm, prompts())[0]))
"""
"""A file of its own, because vLLM starts the second device's process from the main module."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_two_devices_say_what_one_says(name: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """Heads, MLPs and the vocabulary divided; mixers, kept attention and norms over the whole width."""
    run = student_folder(name, tiny_teacher, tmp_path, key_value_heads=2)
    script = tmp_path / "on_two_devices.py"
    script.write_text(ON_TWO_DEVICES)
    environment = (
        os.environ
        | QUIET
        | {
            "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    )
    words = [sys.executable, str(script), str(run)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == said_by_transformers(run, prompts())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("vllm_environment")
@pytest.mark.parametrize("name", ["hybrid", "hybrid with q/k norms"])
def test_preempted_sequences_go_on_as_if_nothing_had_happened(name: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """Keys and values outgrow their room: vLLM drops some sequences, and reads them again later.

    The states alone do not grow, so a student without attention is never dropped.
    """
    run = student_folder(name, tiny_teacher, tmp_path)
    generator = torch.Generator().manual_seed(3)
    asked = [torch.randint(1, 500, (100 + n,), generator=generator).tolist() for n in range(8)]
    llm = engine(run, max_num_batched_tokens=64, num_gpu_blocks_override=18, max_model_len=192)
    assert said_by_vllm(llm, asked, 70)[0] == said_by_transformers(run, asked, 70)
    (preempted,) = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
    assert preempted > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("vllm_environment")
@pytest.mark.parametrize("name", ["arwkv", "hybrid"])
def test_bf16_differs_first_where_two_tokens_are_as_likely(name: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """Both round differently; where their tokens part, transformers' own logits of the two are nearly equal."""
    run = student_folder(name, tiny_teacher, tmp_path)
    student = load_student(run, torch.bfloat16).eval()
    llm = engine(run, dtype="bfloat16", max_num_batched_tokens=64)
    said = said_by_vllm(llm, prompts())[0]
    gaps = []
    for ids, new in zip(prompts(), said, strict=True):
        # What transformers says of vLLM's text, up to the first token that it would not have chosen.
        logits_TV = student(torch.tensor([[*ids, *new]])).logits[0, len(ids) - 1 : -1, :500].float()
        own = logits_TV.argmax(-1).tolist()
        at = next((t for t, token in enumerate(new) if token != own[t]), None)
        if at is not None:
            gaps.append(float((logits_TV[at].max() - logits_TV[at, new[at]]) / logits_TV[at].std()))
    assert max(gaps, default=0.0) < 0.1, gaps
    assert len(gaps) < len(prompts())


def test_plugin_is_an_entry_point_of_vllm() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"]["arwkv_student"] == "arwkv_student.serving.plugin:register"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("vllm_environment")
def test_what_was_not_verified_is_named(tiny_teacher: Path, tmp_path: Path) -> None:
    from arwkv_student.serving.served_student import unverified

    run = student_folder("arwkv", tiny_teacher, tmp_path)
    config = engine(run).llm_engine.vllm_config
    assert unverified(config) == []
    parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=2)
    graphs = SimpleNamespace(cudagraph_mode=SimpleNamespace(name="FULL"))
    asked = {
        "use_v2_model_runner": True,
        "compilation_config": graphs,
        "parallel_config": parallel,
        "quant_config": object(),
        "speculative_config": object(),
        "model_config": config.model_config,
    }
    found = unverified(SimpleNamespace(**asked))
    for reason in ("VLLM_USE_V2_MODEL_RUNNER=0", "enforce_eager=True", "give --tensor-", "quantized", "speculative"):
        assert reason in "; ".join(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("vllm_environment")
def test_heads_that_devices_do_not_divide_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    from arwkv_student.serving.divided import own_options

    config = load_student(student_folder("hybrid", tiny_teacher, tmp_path)).config
    own = own_options(config, 1)
    assert (own.num_heads, own.num_key_value_heads) == (2, 2)
    with pytest.raises(ValueError, match="size 2 does not divide the 1 key-value heads of its attention; choose"):
        own_options(config, 2)


@pytest.fixture
def server(tiny_teacher: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of vLLM's server of a student, started as a user starts it, and the student's folder."""
    run = student_folder("arwkv", tiny_teacher, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(run)
    about = tmp_path / "plugin" / "arwkv_plugin-0.dist-info"  # as an installed package tells of it
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: arwkv-plugin\nVersion: 0\n")
    plugin = "[vllm.general_plugins]\narwkv_student = arwkv_student.serving.plugin:register\n"
    (about / "entry_points.txt").write_text(plugin)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(about.parent), *filter(None, sys.path)])
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(run), "--dtype", "float32"),
        *("--enforce-eager", "--max-model-len", "512", "--port", str(port), "--served-model-name", "student"),
    ]
    environment = os.environ | QUIET | {"PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_ready(address, process, tmp_path / "log")
            yield address, run
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1000):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.TransportError:
            threading.Event().wait(0.25)
    pytest.fail(log.read_text()[-3000:])


@pytest.mark.slow
def test_server_answers_32_at_once_as_it_answers_one(server: tuple[str, Path]) -> None:
    address, run = server
    asked = prompts()
    expected = said_by_transformers(run, asked)
    body = {
        "model": "student",
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }

    def answer(ids: list[int]) -> list[int]:
        said = httpx.post(f"{address}/v1/completions", json=body | {"prompt": ids}, timeout=600).json()
        chosen: list[int] = said["choices"][0]["token_ids"]
        return chosen

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(answer, [asked[n % len(asked)] for n in range(32)]))
    assert answers == [expected[n % len(asked)] for n in range(32)]
    chat = {
        "model": "student",
        "messages": [{"role": "user", "content": "import os"}],
        "max_tokens": 5,
        "temperature": 0,
    }
    whole = httpx.post(f"{address}/v1/chat/completions", json=chat, timeout=600).json()["choices"][0]
    lines = httpx.post(f"{address}/v1/chat/completions", json=chat | {"stream": True}, timeout=600).text.splitlines()
    pieces = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(piece.get("content") or "" for piece in pieces) == whole["message"]["content"] != ""
