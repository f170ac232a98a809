"""The parts that all console scripts share: flags from dataclasses, TOML defaults, `--json`, exit codes.

A command is a function of one dataclass. The docstring is the command's help, and the fields are the flags. The same
names (with `-` or `_`) are the keys of a `--config FILE.toml`; flags have priority. A value that begins with `~` means
the home folder, unless the field is marked VERBATIM. If a dataclass inherits its fields, the help shows each base as a
titled group of flags.
"""

import dataclasses
import inspect
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from arwkv_store.errors import ArwkvError, UsageError

# Each command takes its own configuration dataclass, which a common type cannot name.
Command = Callable[[Any], Mapping[str, Any] | None]

VERBATIM = object()
"""Marks a field, as in Annotated[str, VERBATIM], whose text may begin with `~` and is not a path: a prompt, a key."""
_FILE_URL = re.compile(r"((?:(?:sqlite(?:\+\w+)?|file):///)?)(~.*)", re.DOTALL)


def unset(metavar: str, meaning: str) -> Any:
    """For Annotated, on a flag whose default is no value: the help shows METAVAR, and (MEANING) as the default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({meaning})")


def main(
    prog: str, description: str, commands: Mapping[str, Command] | Command, argv: Sequence[str] | None = None
) -> None:
    """Parse, call one command (or the only one), exit with its code.

    A command prints its own readable output and returns a JSON-ready mapping (or None), which is printed as the one
    document on stdout when its configuration has `json=True`. Raises SystemExit: 0 ok, 1 failed, 2 usage, 3 corrupt
    data, 75 try again later.
    """
    try:
        command, config = _parse(prog, description, commands, list(sys.argv[1:] if argv is None else argv))
        config = _with_home(config)
        document = command(config)
    except ArwkvError as error:
        print(f"{prog}: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        print(f"{prog}: stopped; run the same command again to continue", file=sys.stderr)
        raise SystemExit(75) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    if document is not None and getattr(config, "json", False):
        print(json.dumps(document, indent=2, default=str))
    raise SystemExit(0)


def _parse(
    prog: str, description: str, commands: Mapping[str, Command] | Command, words: list[str]
) -> tuple[Command, Any]:
    description += " Flags can also come from a file: --config FILE.toml; typed flags win."
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    if not isinstance(commands, Mapping):
        config_type = _config_type(commands)
        words = _expand_config_file(words, config_type)
        shown = tyro.cli(_grouped(config_type), prog=prog, description=description, args=words, config=markers)
        return commands, _flat(shown, config_type)
    types: dict[str, Callable[..., Any]] = {name: _grouped(_config_type(command)) for name, command in commands.items()}
    if words and words[0] in commands:
        words = [words[0], *_expand_config_file(words[1:], _config_type(commands[words[0]]))]
    config = tyro.extras.subcommand_cli_from_dict(types, prog=prog, description=description, args=words, config=markers)
    return commands[words[0]], _flat(config, _config_type(commands[words[0]]))


def _grouped(config_type: type[Any]) -> type[Any]:
    """The type for the parser: for a type that inherits all its fields, a dataclass with one field for each base.

    The base's name and docstring become the title of a group of flags. A base that only inherits is replaced by its own
    bases; a base whose subclass is already a group is left out.
    """
    bases: list[type[Any]] = []
    for base in filter(dataclasses.is_dataclass, config_type.__mro__):
        if _declares_fields(base) and not any(issubclass(group, base) for group in bases):
            bases.append(base)
    if config_type in bases:
        return config_type
    groups = [(re.sub(r"(?<!^)(?=[A-Z])", "_", base.__name__).lower(), base) for base in bases]
    shown = dataclasses.make_dataclass(config_type.__name__, groups, frozen=True)
    shown.__doc__ = config_type.__doc__
    return shown


def _declares_fields(config_type: type[Any]) -> bool:
    return any(field.name in inspect.get_annotations(config_type) for field in dataclasses.fields(config_type))


def _flat(shown: Any, config_type: type[Any]) -> Any:
    """The configuration itself, from the parser's result for `_grouped`."""
    if isinstance(shown, config_type):
        return shown
    groups = [getattr(shown, group.name) for group in dataclasses.fields(shown)]
    return config_type(
        **{field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
    )


def _with_home(config: Any) -> Any:
    """The configuration with `~` replaced in every path, URI and URL of a local file."""
    hints = get_type_hints(type(config), include_extras=True).items()
    paths = [name for name, hint in hints if VERBATIM not in getattr(hint, "__metadata__", ())]
    return dataclasses.replace(config, **{name: _home_expanded(getattr(config, name)) for name in paths})


def _home_expanded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_home_expanded, value))
    if isinstance(value, str | Path) and (match := _FILE_URL.fullmatch(str(value))):
        return type(value)(match[1] + os.path.expanduser(match[2]))
    return value


def _config_type(command: Command) -> type[Any]:
    (parameter,) = inspect.signature(command, eval_str=True).parameters.values()
    config_type: type[Any] = parameter.annotation
    assert dataclasses.is_dataclass(config_type), f"{command} takes no configuration dataclass"
    return config_type


def _expand_config_file(words: list[str], config_type: type[Any]) -> list[str]:
    """Replace `--config FILE` by its flags, before the typed flags, so that typed flags have priority."""
    at = next((i for i, word in enumerate(words) if word == "--config" or word.startswith("--config=")), None)
    if at is None:
        return words
    if "=" in words[at]:
        path, rest = words[at].split("=", 1)[1], words[:at] + words[at + 1 :]
    elif at + 1 < len(words):
        path, rest = words[at + 1], words[:at] + words[at + 2 :]
    else:
        raise UsageError("--config: no file given; write --config FILE.toml")
    typed = {word.split("=", 1)[0].replace("_", "-") for word in rest if word.startswith("--")}
    return [*_flags_from_toml(_home_expanded(Path(path)), config_type, typed), *rest]


def _flags_from_toml(path: Path, config_type: type, typed: set[str]) -> list[str]:
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: {error}; name a readable TOML file") from error
    # A flag that is a word of Python's, such as --from, is a field with an underscore behind.
    known = {field.name.rstrip("_") for field in dataclasses.fields(config_type)}
    hints = get_type_hints(config_type, include_extras=True).items()
    repeated = {name for name, hint in hints if tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ())}
    flags: list[str] = []
    for key, value in table.items():
        if key.replace("-", "_") not in known:
            raise UsageError(f"--config {path}: unknown key {key!r}; known keys: {', '.join(sorted(known))}")
        flag = "--" + key.replace("_", "-")
        if flag in typed or value is False:
            continue
        words = [str(word) for word in (value if isinstance(value, list) else [value])]
        if key.replace("-", "_") in repeated:
            flags += [part for word in words for part in (flag, word)]
        else:
            flags += [flag] if value is True else [flag, *words]
    return flags
