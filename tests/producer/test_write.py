"""The teacher's own answers: what vLLM samples, what a stop leaves, and whose text a dataset says it holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.job import prepare
from arwkv_producer.write_config import WriteConfig
from arwkv_producer.writing.write import write
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.places.answer_file import origin_of, written_by

FLAGS = ("--max-new-tokens", "8", "--dtype", "float32")
PROMPTS = ["import os", "def f(x):\n    return", "class A"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "answer": text[:3]}) + "\n" for text in PROMPTS))
    return file


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(teacher: Path, data: Path, out: Path, *flags: str) -> dict[str, Any]:
    words = ["--teacher", str(teacher), "--data", str(data), "--out", str(out), "--json", *flags]
    code = "import sys; from arwkv_producer.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "write", *words], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def greedy(teacher: Path, text: str, tokens: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    ids = tokenizer(text)["input_ids"]
    read = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1, :500].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[read:]))


@pytest.mark.slow
def test_teacher_answers_as_transformers_does(tiny_teacher: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    summary = run(tiny_teacher, data, out, *FLAGS, "--temperature", "0")
    assert summary["answers"] == 3
    assert summary["written_by"] == written_by(out)
    for text, record in zip(PROMPTS, records(out), strict=True):
        assert (record["prompt"], record["answer"]) == (text, text[:3])
        assert record["completion"] == greedy(tiny_teacher, text, 8)


@pytest.mark.slow
def test_writing_goes_on_after_a_stop(tiny_teacher: Path, data: Path, tmp_path: Path) -> None:
    sampled = tmp_path / "sampled.jsonl"
    run(tiny_teacher, data, sampled, *FLAGS, "--samples", "2", "--batch-size", "2")
    whole = sampled.read_bytes()
    assert len({record["completion"] for record in records(sampled)}) > 3
    sampled.rename(tmp_path / "sampled.jsonl.part")
    (tmp_path / "sampled.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    run(tiny_teacher, data, sampled, *FLAGS, "--samples", "2", "--batch-size", "2")
    assert sampled.read_bytes() == whole


def test_dataset_of_answers_says_who_wrote_them(tiny_teacher: Path, tmp_path: Path) -> None:
    answers = tmp_path / "said" / "answers.jsonl"
    answers.parent.mkdir()
    answers.write_text(json.dumps({"prompt": "import", "completion": " os and more"}) + "\n")
    config = GenerateConfig(
        teacher=str(tiny_teacher), data=(str(answers),), out=str(tmp_path / "shards"), max_length=64
    )
    (job,) = prepare(config)
    assert job.info.corpus.description == "answers.jsonl"
    origin_of(answers).write_text(json.dumps({"written_by": "abc-def"}))
    (job,) = prepare(config)
    assert job.info.corpus.description == "answers.jsonl (written by abc-def)"
    assert job.corpus.loss_mask.sum() < len(job.corpus.tokens)
    (of_folder,) = prepare(
        GenerateConfig(teacher=str(tiny_teacher), data=(str(answers.parent),), out=str(tmp_path / "s"), max_length=64)
    )
    assert "written by abc-def" in of_folder.info.corpus.description


def test_what_cannot_be_written_is_refused(tiny_teacher: Path, data: Path, tmp_path: Path) -> None:
    def asked(**more: Any) -> WriteConfig:
        return WriteConfig(teacher=str(tiny_teacher), data=(str(data),), out=tmp_path / "out.jsonl", **more)

    with pytest.raises(
        UsageError, match=r"--max-new-tokens 600: with the longest prompt \(\d+ tokens\) it exceeds 512"
    ):
        write(asked(max_new_tokens=600))
    with pytest.raises(UsageError, match="--temperature -1: give 0 or more"):
        asked(temperature=-1)
    with pytest.raises(UsageError, match="--samples 0: give at least 1"):
        asked(samples=0)
    with pytest.raises(NotFound, match="no such file"):
        write(WriteConfig(teacher=str(tiny_teacher), data=(str(tmp_path / "none.jsonl"),), out=tmp_path / "out.jsonl"))
    data.write_text('{"text": "x"}\n')
    with pytest.raises(UsageError, match="no prompt or messages"):
        write(asked())
    assert not (tmp_path / "out.jsonl").exists()
