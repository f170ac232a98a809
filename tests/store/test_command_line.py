import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro

from arwkv_store.commands.command_line import VERBATIM, main
from arwkv_store.errors import CorruptShard, TryAgain, UsageError


@dataclasses.dataclass(frozen=True)
class Bake:
    """Bake one cake."""

    name: tyro.conf.Positional[str]
    """What to call it."""
    eggs: int = 2
    """How many eggs."""
    layers: tuple[int, ...] = ()
    """Heights in centimetres."""
    vegan: bool = False
    """Leave the eggs out."""
    json: bool = False
    """Print JSON."""


def bake(config: Bake) -> dict[str, Any]:
    if config.name == "corrupt":
        raise CorruptShard("cake.arrow: batch 1: mouldy")
    if config.name == "later":
        raise TryAgain("oven busy")
    if config.eggs < 0:
        raise UsageError(f"--eggs {config.eggs}: must not be negative")
    return dataclasses.asdict(config)


def run(*words: str, single: bool = False) -> int:
    with pytest.raises(SystemExit) as stopped:
        main("baker", "Bakes.", bake if single else {"bake": bake}, list(words))
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_json_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bake", "plain", "--layers", "1", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["layers"] == [1, 2]


@pytest.mark.parametrize(
    ("words", "code"), [(("corrupt",), 3), (("later",), 75), (("x", "--eggs", "-1"), 2), (("x", "--eggs", "q"), 2)]
)
def test_exit_code_says_what_kind_of_failure(words: tuple[str, ...], code: int) -> None:
    assert run("bake", *words) == code


def test_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run("bake", "x", "--eggs", "-1")
    assert capsys.readouterr().err == "baker: UsageError: --eggs -1: must not be negative\n"


@pytest.mark.parametrize("single", [True, False])
def test_config_file_gives_flags_and_typed_flags_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], single: bool
) -> None:
    (tmp_path / "c.toml").write_text("eggs = 5\nlayers = [3, 4]\nvegan = true\n")
    words = ["plain", "--config", str(tmp_path / "c.toml"), "--eggs", "7", "--json"]
    assert run(*([] if single else ["bake"]), *words, single=single) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["eggs"], document["layers"], document["vegan"]) == (7, [3, 4], True)


@pytest.mark.parametrize("text", ["spoons = 1\n", "eggs = = 2\n"])
def test_bad_config_file_is_a_usage_error(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert run("bake", "plain", f"--config={tmp_path / 'c.toml'}") == 2
    assert "c.toml" in capsys.readouterr().err


def test_missing_config_file_is_a_usage_error() -> None:
    assert run("bake", "plain", "--config", "nowhere.toml") == 2
    assert run("bake", "plain", "--config") == 2


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Fetch from places."""

    place: tyro.conf.Positional[str]
    """Where from."""
    out: Path = Path("x")
    """Where to."""
    database: str | None = None
    """A URL."""
    more: tuple[tuple[Path, ...], ...] = ()
    """Further places."""
    say: Annotated[str, VERBATIM] = ""
    """What to say."""
    json: bool = False
    """Print JSON."""


def fetch(config: Fetch) -> dict[str, Any]:
    return dataclasses.asdict(config)


def test_tilde_is_the_home_folder_in_every_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    file = tmp_path / "fetch.toml"
    file.write_text('out = "~/out"\ndatabase = "sqlite:///~/index.db"\nsay = "~/hello"\n')
    with pytest.raises(SystemExit):
        main("fetch", "Fetches.", fetch, ["~/cake", "--config", str(file), "--more", "~/a", "b~", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "place": "/home/ann/cake",
        "out": "/home/ann/out",
        "database": "sqlite:////home/ann/index.db",
        "more": [["/home/ann/a", "b~"]],
        "say": "~/hello",
        "json": True,
    }


@dataclasses.dataclass(frozen=True)
class BakeTwice(Bake):
    """Bake it again."""

    minutes: int = 10
    """For how long."""


def bake_twice(config: BakeTwice) -> dict[str, Any]:
    return dataclasses.asdict(config)


def test_flags_of_a_type_and_of_what_it_inherits_are_both_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("baker", "Bakes.", {"twice": bake_twice}, ["twice", "plain", "--minutes", "3", "--eggs", "1", "--json"])
    read = json.loads(capsys.readouterr().out)
    assert (read["minutes"], read["eggs"]) == (3, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dough:
    """What it is made of."""

    eggs: int = 2
    """How many eggs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweetDough(Dough):
    """What it is made of, sugar included."""

    sugar: int = 100
    """Grams of sugar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    """How it is baked."""

    minutes: int = 10
    """For how long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bread(Dough, Oven):
    """Bake bread."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake(SweetDough, Bread):
    """Bake a cake."""

    def __post_init__(self) -> None:
        assert type(self) is Cake


def test_a_command_that_extends_another_shows_each_group_of_flags_once(capsys: pytest.CaptureFixture[str]) -> None:
    def cake(config: Cake) -> dict[str, Any]:
        return dataclasses.asdict(config)

    with pytest.raises(SystemExit) as stopped:
        main("cake", "Bakes.", cake, ["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert re.findall(r"(?m)^ ([a-z-]+) options +$", said) == ["sweet-dough", "oven"]
    assert (said.count("--eggs"), said.count("--minutes"), said.count("--sugar")) == (2, 2, 2)
    with pytest.raises(SystemExit) as stopped:
        main("cake", "Bakes.", cake, ["--eggs", "3", "--minutes", "5"])
    assert stopped.value.code == 0
