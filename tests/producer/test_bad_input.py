"""Every mistake a user can make is one line that names it and the way out, before any weight is loaded."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from arwkv_producer.cli import generate, main
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.output_folder import require_room
from arwkv_producer.teacher.teacher import find_teacher
from arwkv_store.errors import UsageError

Producer = Callable[..., tuple[int, str]]


@pytest.fixture
def producer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Producer:
    """Run the command in this process; answers its exit code and the last line it said."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["producer", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        return int(str(stopped.value.code)), lines[-1] if lines else ""

    return run


class Terminal(io.StringIO):
    """Somebody is there."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_tokenizer(tiny_teacher: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "no-tokenizer"
    shutil.copytree(tiny_teacher, folder, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*"))
    return folder


@pytest.fixture
def bert(tiny_teacher: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    return folder


def lines_file(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_missing_teacher(producer: Producer, tiny_corpus: Path, tmp_path: Path) -> None:
    code, said = producer(
        "generate", "--teacher", "./nowhere", "--data", str(tiny_corpus), "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert said == "producer: NotFound: --teacher ./nowhere: no such folder; name a model folder or a Hub model"


def test_teacher_folder_without_a_model(producer: Producer, tiny_corpus: Path, tmp_path: Path) -> None:
    code, said = producer(
        "generate", "--teacher", str(tmp_path), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert "no config.json there" in said


def test_hub_name_that_cannot_be_reached(producer: Producer, tiny_corpus: Path, tmp_path: Path) -> None:
    code, said = producer("generate", "--teacher", "Qwen9-1B", "--data", str(tiny_corpus), "--out", str(tmp_path / "o"))
    assert code == 2
    assert "--teacher Qwen/Qwen9-1B: not a local folder, and the Hub cannot be reached" in said


def test_architecture_that_cannot_be_captured(
    producer: Producer, bert: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    code, said = producer("generate", "--teacher", str(bert), "--data", str(tiny_corpus), "--out", str(tmp_path / "o"))
    assert code == 2
    assert "architecture BertForMaskedLM is no text decoder with a head" in said


def test_missing_tokenizer(producer: Producer, no_tokenizer: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = ["--teacher", str(no_tokenizer), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert "put tokenizer.json beside the weights" in said


def test_missing_weights(producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    shutil.copytree(tiny_teacher, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    arguments = ["--teacher", str(folder), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert "put the weights beside config.json" in said


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("config.json", 300, "config.json: "),
        ("model.safetensors", 300, "model.safetensors is not whole (300 bytes); fetch it again"),
        ("model.safetensors", 0, "model.safetensors is a Git LFS pointer, not the file"),
        ("tokenizer.json", 0, "no usable tokenizer"),
        ("tokenizer.json", 300, "no usable tokenizer"),
    ],
)
def test_a_model_that_is_not_whole(
    producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path, name: str, kept: int, message: str
) -> None:
    folder = tmp_path / "unfinished"
    shutil.copytree(tiny_teacher, folder)
    content = (folder / name).read_bytes()[:kept] or b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    (folder / name).write_bytes(content)
    arguments = ["--teacher", str(folder), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert message in said


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no text in 1 sources"),
        (['{"text": ""}'], "no text in 1 sources"),
        (['{"text": "a"}', "{oops"], "bad.jsonl:2: not JSON"),
        (['{"text": "a"}', '{"body": "b"}'], "bad.jsonl:2: no field 'text' (it has: body); name another with --field"),
        (['{"text": 3}'], "bad.jsonl:1: field 'text' is int, not a string"),
        (['"text"'], "bad.jsonl:1: str, not a JSON object"),
    ],
    ids=["empty file", "empty text", "not JSON", "no field", "not a string", "not an object"],
)
def test_bad_corpus(producer: Producer, tiny_teacher: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    data = lines_file(tmp_path, *lines)
    arguments = ["--teacher", str(tiny_teacher), "--data", data, "--out", str(tmp_path / "o"), "--max-length", "96"]
    code, said = producer("generate", *arguments)
    assert code == 2
    assert message in said
    assert not (tmp_path / "o").exists(), "nothing is written before everything is checked"


def test_text_that_is_not_utf8(producer: Producer, tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    arguments = ["--teacher", str(tiny_teacher), "--data", str(tmp_path / "latin.txt"), "--out", str(tmp_path / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert "latin.txt: not UTF-8 at byte 3" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k", "501"], "--top-k 501: the teacher's tokenizer has 500 tokens"),
        (["--top-k", "0"], "--top-k 0: must be at least 1"),
        (["--max-length", "513"], "--max-length 513: the teacher reads at most 512 tokens"),
        (["--hidden-states", "attention", "--layers", "0,2"], "--layers 0,2: the teacher has no layer 2"),
        (["--hidden-states", "attention", "--layers", "some"], "--layers some: neither `all` nor numbers"),
        (["--logits", "none"], "nothing to capture"),
        (["--rank", "2", "--world-size", "2"], "--rank 2: must be from 0 to 1 with --world-size 2"),
    ],
)
def test_impossible_request(
    producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    arguments = ["--teacher", str(tiny_teacher), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    flags = flags if "--max-length" in flags else ["--max-length", "96", *flags]
    code, said = producer("generate", *arguments, *flags)
    assert code == 2
    assert message in said


def test_tokens_beyond_the_head_are_named_with_a_way_out(
    producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "padded"
    shutil.copytree(tiny_teacher, teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(43)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(teacher)
    arguments = ["generate", "--teacher", str(teacher), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    code, said = producer(*arguments, "--max-length", "96", "--dry-run")
    assert code == 0, "44 rows are padding, which extra tokens may take"
    tokenizer.add_tokens(["<one too many>"])
    tokenizer.save_pretrained(teacher)
    code, said = producer(*arguments, "--max-length", "96", "--dry-run")
    assert code == 2
    assert "545 tokens, but its head has 544 rows, none for '<one too many>'; name a copy of the model" in said
    assert "resize_token_embeddings(545)" in said


def test_output_that_is_a_file(producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "o").write_text("")
    arguments = ["--teacher", str(tiny_teacher), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert "is a file; name a folder" in said


def test_output_at_a_service_is_refused_before_the_text_is_read(producer: Producer, tiny_teacher: Path) -> None:
    arguments = ["--teacher", str(tiny_teacher), "--data", str(tiny_teacher), "--out", "http://host/v1/datasets/o"]
    code, said = producer("generate", *arguments)
    assert code == 2
    assert "can only be read; name a folder" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_that_is_not_writable(producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    arguments = ["--teacher", str(tiny_teacher), "--data", str(tiny_corpus), "--out", str(tmp_path / "locked" / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert "is not writable" in said


def test_disk_without_room(
    producer: Producer, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    arguments = ["--teacher", str(tiny_teacher), "--data", str(tiny_corpus), "--out", str(tmp_path / "o")]
    code, said = producer("generate", "--max-length", "96", *arguments)
    assert code == 2
    assert said.endswith("choose fewer layers or another disk, or set --fill-disk")


def test_a_dry_run_shows_the_plan_of_what_does_not_fit(
    tiny_teacher: Path,
    tiny_corpus: Path,
    size_at_96: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    flags = {"max_length": 96, "dry_run": True, "tokens_per_s": 10.0}
    generate(GenerateConfig(teacher=str(tiny_teacher), data=(str(tiny_corpus),), out=str(tmp_path / "o"), **flags))
    said = capsys.readouterr()
    assert "{:,} tokens in {} samples".format(*size_at_96) in said.out
    assert "0.5 hours at the given speed" in said.out
    assert said.err.endswith("the run will not start without --fill-disk\n")


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_on_a_terminal_a_full_disk_is_asked_about(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    config = GenerateConfig(teacher=str(tiny_teacher), data=("d",), out=str(tmp_path / "o"), max_length=96)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", shown)
    with contextlib.nullcontext() if goes_on else pytest.raises(UsageError, match="set --fill-disk"):
        require_room(config, find_teacher(str(tiny_teacher)), tokens=1_000_000)
    assert shown.getvalue().endswith("0.0 GB are free; continue? [y/N] ")


def test_missing_data(producer: Producer, tiny_teacher: Path, tmp_path: Path) -> None:
    code, said = producer(
        "generate", "--teacher", str(tiny_teacher), "--data", "nothing-*.jsonl", "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert "--data nothing-*.jsonl: no such file" in said


def test_help_is_quick_to_load() -> None:
    """The command line imports neither torch nor vLLM nor transformers."""
    check = "import sys, arwkv_producer.cli; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
