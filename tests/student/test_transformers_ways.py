"""The ways in which people run a model with transformers: each gives a student's own tokens, or is refused by name.

Adapters, quantization and offloading are in test_wrapped_modules.py, torch.compile in test_compiled_model.py.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from test_generate import student, tokens_BT
from transformers import AutoTokenizer, pipeline

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.suppressed_rows import suppress_padding_rows

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
KINDS = [("arwkv", ()), ("rad-rwkv7", (0, 2))]


@pytest.mark.parametrize(("preset", "attention_layers"), KINDS)
@pytest.mark.parametrize("ask", [{"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 3}], ids=str)
def test_other_caches_and_beams_give_what_rereading_gives(
    preset: str, attention_layers: tuple[int, ...], ask: dict[str, Any]
) -> None:
    model, ids = student(preset, attention_layers).eval(), tokens_BT(1, 10)
    reread = {"use_cache": False} | ({"num_beams": 3} if "num_beams" in ask else {})
    assert torch.equal(model.generate(ids, **GREEDY, **ask), model.generate(ids, **GREEDY, **reread))


@pytest.mark.parametrize(("preset", "attention_layers"), KINDS)
def test_assisted_decoding_is_refused_by_name(preset: str, attention_layers: tuple[int, ...]) -> None:
    """A state cannot go back by the tokens that were not accepted."""
    model = student(preset, attention_layers).eval()
    for ask in ({"assistant_model": student(preset, attention_layers).eval()}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            model.generate(tokens_BT(1, 10), **GREEDY, **ask)


@pytest.fixture(scope="module")
def run(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's folder, whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("ways") / "run"
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    copy_tokenizer(tiny_teacher, folder)
    suppress_padding_rows(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def said(run: Path, text: str) -> str:
    """The student's greedy continuation."""
    from arwkv_student.model.loading import load_student

    tokenizer = AutoTokenizer.from_pretrained(run)
    ids = tokenizer(text, return_tensors="pt").input_ids
    padding = list(range(500, 544))
    out = load_student(run).eval().generate(ids, max_new_tokens=8, do_sample=False, suppress_tokens=padding)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_pipeline_says_what_the_student_says(run: Path) -> None:
    asked = pipeline("text-generation", model=str(run), device="cpu", dtype=torch.float32)
    (answer,) = asked("import os", max_new_tokens=8, do_sample=False, return_full_text=False)
    assert answer["generated_text"] == said(run, "import os")


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[str]:
    """The address of `transformers serve` with the student."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ["serve", str(run), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "arwkv_student.serving.transformers_cli", *words]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(1200):
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                try:
                    httpx.get(f"http://127.0.0.1:{port}/health")
                    break
                except httpx.TransportError:
                    threading.Event().wait(0.25)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@pytest.mark.slow
def test_transformers_serve_answers_as_the_student(server: str, run: Path) -> None:
    messages = [{"role": "user", "content": "import os"}]
    asked = {"model": str(run), "messages": messages, "max_tokens": 8, "temperature": 0, "stream": False}
    answer = httpx.post(f"{server}/v1/chat/completions", json=asked, timeout=300)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == said(run, "import os")
