"""docs/producer.md and `--help` describe every flag that exists."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from arwkv_producer.cli import main
from arwkv_producer.config import DoctorConfig, GenerateConfig, PlanConfig, TokeniseConfig, VerifyConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "producer.md"


@pytest.mark.parametrize("config", [GenerateConfig, PlanConfig, TokeniseConfig, VerifyConfig, DoctorConfig])
def test_every_flag_is_documented(config: type) -> None:
    text = DOCUMENT.read_text()
    flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(config)]
    assert [flag for flag in flags if f"`{flag}`" not in text] == []


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("generate", ["teacher", "data", "out", "logits", "top-k", "hidden-states", "layers", "max-length"]),
        ("plan", ["teacher", "data", "out", "logits", "top-k", "hidden-states", "layers", "max-length", "tokens"]),
        ("tokenise", ["teacher", "data", "out", "max-length", "extend"]),
        ("verify", ["shards", "teacher", "json"]),
    ],
)
def test_help_begins_with_what_everyone_needs_in_titled_groups(
    command: str, first: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["producer", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    _, general, *groups = re.split(r"(?m)^ (?:[a-z-]+ )?options +$", said)
    assert re.findall(r"(?m)^  --([a-z][a-z-]+)", general) == []
    assert re.findall(r"(?m)^  --([a-z][a-z-]+)", groups[0]) == first
    assert len(groups) >= 2
    assert not re.search(r"\(default:\s*(None|'')?\s*\)", said)
