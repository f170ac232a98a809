"""What a corpus was read as is said, kept beside the dataset, and refused where a student would learn nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arwkv_producer.cli import generate
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.job import prepare
from arwkv_producer.run.parts import share
from arwkv_store.errors import UsageError

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_teacher(tiny_teacher: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


def test_the_report_says_what_was_read_and_lies_beside_the_dataset(
    chat_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    written(folder / "a.jsonl", turns("human", "gpt"), turns("system", "user", "assistant", "user"), {"messages": None})
    (folder / "README.md").write_text("How to cite this.")
    flags: dict[str, Any] = {"teacher": str(chat_teacher), "data": (str(folder),), "chat": True, "max_length": 96}
    config = GenerateConfig(out=str(tmp_path / "o"), dry_run=True, **flags)
    document = generate(config)[config.out]["corpus"]
    said = capsys.readouterr().err
    assert "tokens count; turns: user 3, assistant 2, system 1\n" in said
    assert "files read: a.jsonl\n  skipped: README.md (documentation)\n" in said
    assert 0 < document["tokens_counted"] < 80
    (job,) = prepare(config)
    share(config, job)
    kept = json.loads((tmp_path / "o" / "corpus.json").read_text())
    assert (kept["documents"], kept["documents_empty"], kept["samples"]) == (3, 1, 2)
    assert kept["turns"] == {"user": 3, "assistant": 2, "system": 1}
    assert kept["files_passed_over"] == {"README.md": "documentation"}
    with pytest.raises(UsageError, match=r"--strict: 1 files or folders .* first README.md \(documentation\)"):
        prepare(GenerateConfig(out=config.out, strict=True, **flags))


@pytest.mark.parametrize("record", [turns("user", "user"), turns("narrator"), {"messages": turns("a")["messages"] * 2}])
def test_a_corpus_in_which_nothing_counts_is_refused(
    chat_teacher: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    data = written(tmp_path / "a.jsonl", record)
    config = GenerateConfig(teacher=str(chat_teacher), data=(str(data),), out=str(tmp_path / "o"), chat=True)
    with pytest.raises(UsageError, match=r"a.jsonl: no token counts \(0 of \d+ tokens count; turns: \w+ \d.*assistant"):
        prepare(GenerateConfig(**(vars(config) | {"max_length": 96})))


def test_a_corpus_file_may_be_renamed_and_moved_before_a_run_goes_on(tiny_teacher: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"teacher": str(tiny_teacher), "out": str(tmp_path / "o"), "max_length": 96}
    before = written(tmp_path / "a.jsonl", {"text": "river stone"})
    config = GenerateConfig(data=(str(before),), **flags)
    share(config, prepare(config)[0])
    (tmp_path / "elsewhere").mkdir()
    config = GenerateConfig(data=(str(before.rename(tmp_path / "elsewhere" / "b.jsonl")),), **flags)
    assert share(config, prepare(config)[0]).missing == 1
    written(tmp_path / "elsewhere" / "b.jsonl", {"text": "river stones"})
    with pytest.raises(UsageError, match=r"corpus.fingerprint"):
        share(config, prepare(config)[0])
