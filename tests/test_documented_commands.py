"""What the documentation shows works: each command line parses, README's run in order, links lead somewhere."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from api_serving import serving
from arwkv_store.commands import command_line
from documented import DOCUMENTS, OURS, ROOT, blocks, commands, inline_commands, links, paths_named, sections
from store_examples import write_example_dataset

CONFIG = 'teacher = "Qwen2.5-7B-Instruct"\ndata = ["corpus.jsonl"]\n'
Parse = Callable[[list[str]], Any]


def identify(words: list[str]) -> str:
    return " ".join(words)[:80]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parse:
    """Give our command's words to its real parser, and return its configuration; nothing is run."""
    (tmp_path / "capture.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    parsed: list[Any] = []
    real = command_line._parse

    def parse_alone(*arguments: Any) -> tuple[Any, Any]:
        parsed.append(real(*arguments)[1])
        raise SystemExit(0)

    monkeypatch.setattr(command_line, "_parse", parse_alone)

    def run(words: list[str]) -> Any:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"arwkv_{words[0]}.cli").main()
        assert stopped.value.code == 0, " ".join(words)
        return parsed[-1]

    return run


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_line_is_one_that_its_program_takes(document: Path, parse: Parse) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(document):
        if words[0] in OURS:
            parse(words)
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif words[1].endswith(".py"):
            source = (ROOT / words[1]).read_text()
            flags = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
            unknown = [flag for flag in flags if flag not in source and flag[2:].replace("-", "_") not in source]
            assert not unknown, (words, unknown)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_text_name_flags_that_exist(document: Path, parse: Parse) -> None:
    required = {
        "producer generate": ["--teacher", "x", "--data", "x", "--out", "x"],
        "producer plan": ["--teacher", "x"],
        "producer tokenise": ["--teacher", "x", "--data", "x", "--out", "x"],
        "producer verify": ["--teacher", "x", "--shards", "x"],
        "producer write": ["--teacher", "x", "--data", "x", "--out", "x"],
        "student select": ["--base", "x", "--shards", "x", "--keep", "1", "--out", "x"],
        "student rollout": ["--model", "x", "--data", "x", "--out", "x"],
        "student generate": ["--model", "x", "--prompt", "x"],
        "student export": ["--model", "x", "--out", "x"],
        "api serve": ["--root", "x"],
        "api key": ["--keys", "x", "--name", "x"],
    }
    for name, command, *rest in inline_commands(document):
        needed = {"export": ["x", "--out", "x"], "import": ["x", "--out", "x"], "copy": ["x", "x"]}
        positional = needed.get(command, ["x"]) if name == "store" else []
        config = parse([name, command, *positional, *required.get(f"{name} {command}", [])])
        known = {"--config"} | {"--" + field.name.rstrip("_").replace("_", "-") for field in fields(config)}
        assert {word for word in rest if word.startswith("--")} <= known, (name, command, rest)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_sections(document: Path) -> None:
    found = list(links(document))
    assert [file for file, _ in found if not file.exists()] == []
    assert [(file.name, section) for file, section in found if section and section not in sections(file)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_the_text_names_exist(document: Path) -> None:
    assert [path for path in paths_named(document) if not path.exists()] == []


def test_python_of_every_page_compiles() -> None:
    for document in DOCUMENTS:
        for block in blocks(document, "python"):
            compile(block, document.name, "exec")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands in README, and what takes its place here; the folder is the one that commands run in."""
    return {
        "s3://bucket/logits": "copied",
        "attn.7": "attn.1",
        "": str(tmp_path_factory.mktemp("readme")),
    }


def replaced(text: str, table: dict[str, str]) -> str:
    for shown, used in table.items():
        text = text.replace(shown, used) if shown else text
    return text


def run(words: list[str], folder: Path) -> None:
    """Run one of our commands as its console script does."""
    code = f"from arwkv_{words[0]}.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, (words, done.stderr)


def readme() -> list[list[str]]:
    return commands(ROOT / "README.md")


def test_readme_looks_at_shards_as_it_says(table: dict[str, str]) -> None:
    folder = Path(table[""])
    write_example_dataset(folder / "shards" / "logits")
    write_example_dataset(folder / "shards" / "align")
    lines = [words for words in readme() if words[0] == "store"]
    assert len(lines) >= 4
    for words in lines:
        run([replaced(word, table) for word in words], folder)
    (block,) = [body for body in blocks(ROOT / "README.md", "python") if "import arwkv_store" in body]
    subprocess.run([sys.executable, "-c", replaced(block, table)], cwd=folder, check=True, timeout=60)


@pytest.fixture
def long_teacher(tiny_teacher: Path, tmp_path: Path) -> Path:
    """The tiny teacher with positions for the lengths that README asks for, and heads that vLLM has on a CPU."""
    import torch
    from transformers import AutoConfig, Qwen2ForCausalLM

    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    Qwen2ForCausalLM(AutoConfig.from_pretrained(folder, max_position_embeddings=2048, **heads)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_readme_runs_in_order(long_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "align.jsonl"):
        shutil.copy(tiny_corpus, tmp_path / name)
    asked = {"prompt": "def ", "completion": "main():", "chosen": "main():", "rejected": "None"}
    for name, keys in (("chat", ("prompt", "completion")), ("preferences", ("prompt", "chosen", "rejected"))):
        lines = [json.dumps({key: asked[key] for key in keys})] * 8
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    local = {name: str(long_teacher) for name in ("Qwen2.5-32B-Instruct", "Qwen2.5-7B-Instruct")}
    table = {**local, "s3://bucket/logits": "copied", "attn.7": "attn.1"}
    lines = [words for words in readme() if words[0] in OURS]
    served = next(at for at, words in enumerate(lines) if words[:2] == ["api", "serve"])
    for words in lines[:served]:
        run(["0.2" if word == "0.01" else replaced(word, table) for word in words], tmp_path)  # a few documents
    with serving("--root", str(tmp_path / "shards"), cache=tmp_path / "cache") as (url, _):
        for words in lines[served + 1 :]:
            if "--suite" not in words:  # its tasks are fetched
                run([replaced(word, {**table, "http://127.0.0.1:8000": url}) for word in words], tmp_path)
        for block in blocks(ROOT / "README.md", "python"):
            subprocess.run([sys.executable, "-c", replaced(block, table)], cwd=tmp_path, check=True, timeout=300)
