"""Search: the texts of a dataset or a run, and the words that must be among them."""

from collections.abc import Iterator, Mapping, Sequence

MOST_CHARACTERS = 1 << 16
"""Of a dataset or run; what follows is not found."""


def words_in(*documents: object) -> str:
    """Every text and number in these JSON values, names of fields apart, in lower case. A NUL, which databases do not
    store or end a text at, becomes a space."""
    texts = "\n".join(text for document in documents for text in _texts(document))
    return texts.replace("\0", " ").lower()[:MOST_CHARACTERS]


def asked_for(search: str) -> list[str]:
    """The words of a search; each must be found, in any case and order."""
    return search.lower().split()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _texts(part)
    elif value is not None:
        yield str(value)
