"""`student export --push`, by the Hub's own client over HTTP, to a server that keeps files as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session, constants
from tiny_bases import tiny_base

from arwkv_store.errors import TryAgain, UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.export.publish import publish
from arwkv_student.settings import ExportSettings
from model_hub import TOKEN, Hub, model_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's own upload


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that llama.cpp can run: heads of 64, its base's tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    base = open_base(str(tiny_base("llama", tiny_teacher, folder / "base")))
    convert(base, student_config(base, "arwkv", {"head_dim": 64, "rope": False})).model.save_pretrained(folder / "run")
    copy_tokenizer(tiny_teacher, folder / "run")
    return folder / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub, which is this process's too: the library reads the environment when it is imported."""
    with model_hub() as one:
        monkeypatch.setattr(constants, "ENDPOINT", one.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield one
    close_session()


def test_interrupted_push_continues_and_a_second_one_changes_nothing(hub: Hub, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ExportSettings(
        model=str(student), out=out, self_contained=True, gguf=("q8_0",), push="owner/made", private=True
    )
    hub.refuse_uploads_after = 2
    with pytest.raises(TryAgain, match="run the same command again"):
        publish(asked)
    assert (hub.repositories["owner/made"], len(hub.uploads), hub.private["owner/made"]) == ({}, 2, True)
    hub.refuse_uploads_after = None
    said = publish(asked)
    files = hub.repositories["owner/made"]
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()
    }
    assert {"model.safetensors", "made-q8_0.gguf", "made-q8_0.Modelfile", "README.md", "tokenizer.json"} <= files.keys()
    assert len(hub.uploads) == len(hub.objects)
    assert (said["url"], said["commit"], len(hub.commits)) == (f"{hub.endpoint}/owner/made", f"{1:040x}", 1)
    card = files["README.md"].decode()
    for told in ('from_pretrained("owner/made", trust_remote_code=True)', "| vLLM | `vllm serve owner/made",
                 "llama-server -hf owner/made -np 1", "# made"):  # fmt: skip
        assert told in card, told
    publish(asked)
    assert (len(hub.commits), len(hub.uploads)) == (1, len(hub.objects))


def test_push_without_permission_says_so_before_it_exports(
    hub: Hub, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ExportSettings(model=str(student), out=tmp_path / "out", push="owner/made")
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(UsageError, match="hf auth login"):
        publish(asked)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="rights"):
        publish(replace(asked, push="another/made"))
    assert not (tmp_path / "out").exists()


def push(hub: Hub, tmp_path: Path, *words: object, code: int = 0) -> dict[str, Any]:
    """The command, in a process of its own."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "arwkv_student.cli", "export", *map(str, words), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else {"error": done.stderr.strip().splitlines()[-1]}


@pytest.mark.slow
def test_command_pushes_one_file_and_says_when_there_is_no_server(hub: Hub, student: Path, tmp_path: Path) -> None:
    words = ("--model", student, "--out", tmp_path / "made.gguf", "--push", "owner/made")
    assert push(hub, tmp_path, *words)["url"] == f"{hub.endpoint}/owner/made"
    assert set(hub.repositories["owner/made"]) == {"made.gguf", "made.Modelfile"}
    hub.endpoint = "http://127.0.0.1:9"
    assert "run the same command again" in push(hub, tmp_path, *words, code=75)["error"]


def test_name_without_an_owner_is_refused(student: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        publish(ExportSettings(model=str(student), out=tmp_path / "out", push="made"))
    with pytest.raises(UsageError, match="name a folder"):
        publish(ExportSettings(model=str(student), out=tmp_path / "out.gguf", gguf=("q8_0",)))
