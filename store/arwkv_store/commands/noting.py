"""`store note`: shows the notes of a dataset or run, or changes them."""

from collections.abc import Sequence

from arwkv_store.dataset.notes_file import notes_file
from arwkv_store.format.layout import NOTES_FILE
from arwkv_store.format.notes import Notes


def noted(uri: str, text: str | None, tags: Sequence[str], untags: Sequence[str]) -> Notes:
    """The notes after the change; nothing is written where none is asked for. Tags of other writers stay.

    Raises NotFound, UsageError, UnsupportedVersion, TryAgain.
    """
    place, where = notes_file(uri), f"{uri}/{NOTES_FILE}"
    if text is None and not tags and not untags:
        return Notes.from_bytes(place.read(), where)

    def change(raw: bytes) -> Notes:
        there = Notes.from_bytes(raw, where)
        kept = {*there.tags, *tags} - set(untags)
        return Notes.said_now(there.text if text is None else text, sorted(kept))

    return place.change(change)


def print_notes(uri: str, notes: Notes) -> None:
    """The tags in a line, and the text."""
    print(f"{uri}: {', '.join(notes.tags) or 'no tags'}")
    print(notes.text or "no text")
