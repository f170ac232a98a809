"""The names of hidden states: "attn.7", "boundary.7" and "final" in a sample, "hidden.attn.007" as a column."""

from arwkv_store.errors import UsageError

PREFIX = "hidden."


def hidden_column(name: str) -> str:
    """The column of a hidden state: "attn.7" is kept in "hidden.attn.007". Raises UsageError for other names."""
    kind, _, layer = name.partition(".")
    if name == "final":
        return f"{PREFIX}final"
    if kind in ("attn", "boundary") and layer.isdecimal() and len(layer) <= 3:
        return f"{PREFIX}{kind}.{int(layer):03d}"
    raise UsageError(f'hidden state {name!r}: not "attn.N", "boundary.N" or "final"')


def hidden_name(column: str) -> str:
    """The hidden state kept in a column: "hidden.attn.007" holds "attn.7"."""
    kind, _, layer = column.removeprefix(PREFIX).partition(".")
    return f"{kind}.{int(layer)}" if layer else kind


def is_hidden_column(column: str) -> bool:
    """Whether a column holds hidden states."""
    return column.startswith(PREFIX)
