"""The data files of a folder, without documentation, hidden files and the metadata of a saved dataset."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from arwkv_producer.text.kinds import KNOWN, kind_of
from arwkv_store.errors import NotFound

DOCUMENTATION = {"readme", "license", "licence", "copying", "notice", "changelog", "citation", "contributing"}
SAVED, SAVED_SPLITS = {"state.json", "dataset_info.json"}, "dataset_dict.json"
"""Files that `save_to_disk` of Hugging Face `datasets` writes next to the data, for one split and for several."""
METADATA = {*SAVED, SAVED_SPLITS, "dataset_infos.json"}
UNSEEN = ("__MACOSX", "__pycache__")
PIECE = re.compile(r"([\w.]+)-(\d{5})-of-(\d{5})\.")
"""How the Hub names the pieces of a split."""


@dataclass(frozen=True)
class PassedOver:
    """A file, or a folder, that is not read, and why."""

    name: str
    reason: str


def data_files(root: str, files: Sequence[str], split: str, asked: str) -> tuple[list[str], list[PassedOver]]:
    """The files below a folder that are read, and those that are skipped.

    Of a data set saved in splits, or in pieces named for theirs, `split` is read. Raises NotFound where a saved data
    set has no such split.
    """
    relative = {file: PurePosixPath(file.removeprefix(root.rstrip("/") + "/")) for file in files}
    splits = _saved_splits(list(relative.values()), split, asked)
    pieces = {found[1] for path in relative.values() if (found := PIECE.match(path.name))}
    chosen: list[str] = []
    passed_over: dict[str, str] = {}
    for file, path in relative.items():
        hidden = next((at for at, part in enumerate(path.parts, 1) if part.startswith(".") or part in UNSEEN), None)
        of_split = next((path.relative_to(top).parts[0] for top in splits if path.is_relative_to(top)), split)
        piece = PIECE.match(path.name)
        if path.name in METADATA:
            continue
        if hidden:
            passed_over[str(PurePosixPath(*path.parts[:hidden]))] = "hidden"
        elif (reason := _reason(path)) is not None:
            passed_over[str(path)] = reason
        elif of_split != split:
            passed_over[of_split] = f"another split than --split {split}"
        elif piece and split in pieces and piece[1] != split:
            passed_over[str(path)] = f"another split than --split {split}"
        else:
            chosen.append(file)
    return chosen, [PassedOver(name, reason) for name, reason in passed_over.items()]


def _reason(path: PurePosixPath) -> str | None:
    if path.name.partition(".")[0].lower() in DOCUMENTATION:
        return "documentation"
    if path.name.startswith("cache-") and path.suffix == ".arrow":
        return "a cache"
    return None if kind_of(path.name) in KNOWN else f"{path.suffix or 'no suffix'}: not a supported kind of file"


def _saved_splits(paths: Sequence[PurePosixPath], split: str, asked: str) -> list[PurePosixPath]:
    """The folders that hold a saved data set in splits, each a folder."""
    tops = [path.parent for path in paths if path.name == SAVED_SPLITS]
    for top in tops:
        has = {path.parent.name for path in paths if path.name in SAVED and path.parent.parent == top}
        if split not in has:
            raise NotFound(f"--data {asked} --split {split}: it was saved with the splits {', '.join(sorted(has))}")
    return tops
