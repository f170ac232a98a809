"""What `--help` of each command says: no Python values, and for `student train` what everyone needs first."""

import importlib
import re
import sys
from collections.abc import Callable

import pytest

COMMANDS = {
    "producer": ("generate", "plan", "tokenise", "write", "verify", "doctor"),
    "store": ("ls", "info", "stats", "verify", "export", "import", "copy", "note", "reindex", "rm", "gc"),
    "student": ("train", "plan", "select", "eval", "generate", "rollout", "export"),
    "api": ("serve", "key"),
}
HelpOf = Callable[[str, str], str]
EVERY = [(program, command) for program, commands in COMMANDS.items() for command in ("", *commands)]
GROUPS = re.compile(r"(?m)^ (?:([a-z-]+) )?options +$")
FLAG = re.compile(r"(?m)^  --([a-z][a-z-]+)")


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> HelpOf:
    """The help of a program's command, as it is printed."""

    def run(program: str, command: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *filter(None, [command]), "--help"])
        with pytest.raises(SystemExit):
            importlib.import_module(f"arwkv_{program}.cli").main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(("program", "command"), EVERY, ids=[" ".join(pair).strip() for pair in EVERY])
def test_help_shows_no_value_of_python(program: str, command: str, help_of: HelpOf) -> None:
    said = help_of(program, command)
    assert f"usage: {program}" in said
    assert not re.search(r"\bNone\b|\(default:\s*(''|\"\")?\s*\)", said)


def test_list_of_commands_is_the_programs_own(help_of: HelpOf) -> None:
    for program, commands in COMMANDS.items():
        (listed,) = re.findall(r"(?m)^usage: \w+ \[-h\] \{(.+)\}$", help_of(program, ""))
        assert tuple(listed.split(",")) == commands


def test_training_begins_with_what_everyone_needs_and_ends_with_the_time_mixer(help_of: HelpOf) -> None:
    _, _, general, *titled = GROUPS.split(help_of("student", "train"))
    groups = dict(zip(titled[::2], map(FLAG.findall, titled[1::2]), strict=True))
    assert FLAG.findall(general) == []
    assert list(groups)[:3] == ["run", "length", "rates"]
    assert groups["run"][:5] == ["shards", "base", "out", "stage", "preset"]
    assert list(groups)[-1] == "advanced-time-mixer"
    assert {"head-dim", "rope", "decay-rank", "gate-rank", "layers"} <= set(groups["advanced-time-mixer"])
