"""The parameters that operations share, with their bounds."""

from typing import Annotated, Literal

from fastapi import Depends, Header, Path, Query

from arwkv_api.http.ranges import require_match
from arwkv_store.format.notes import TAG

# PostgreSQL stores no NUL in a text, so no search with one finds anything.
WITHOUT_NUL = r"^[^\x00]*$"
PAGE_LIMIT = 1000
LARGEST_PART = 10**15 - 1
LARGEST_ID = 2**63 - 1

DatasetName = Annotated[str, Path(description="the dataset's folder name", examples=["train"], max_length=255)]
RunName = Annotated[str, Path(max_length=1000, description="the run's name", examples=["demo-student"])]
Part = Annotated[int, Path(description="the shard's number", ge=0, le=LARGEST_PART, examples=[0])]
Limit = Annotated[int, Query(description="most items to answer", ge=1, le=PAGE_LIMIT)]
Search = Annotated[
    str | None,
    Query(description="words that occur in any text, in any case and order", max_length=255, pattern=WITHOUT_NUL),
]
TagFilter = Annotated[str | None, Query(description="only those with this tag", pattern=TAG, examples=["baseline"])]
DatasetSort = Literal[
    "name", "-name", "teacher", "-teacher", "samples", "-samples", "tokens", "-tokens", "size_bytes", "-size_bytes",
    "created_at", "-created_at", "updated_at", "-updated_at",
]  # fmt: skip
ShardSort = Literal[
    "part", "-part", "samples", "-samples", "tokens", "-tokens", "size_bytes", "-size_bytes", "entropy_mean",
    "-entropy_mean", "tail_mass_mean", "-tail_mass_mean", "committed_at", "-committed_at",
]  # fmt: skip
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before", max_length=1000)]
IfMatch = Annotated[str | None, Header(description="do this only where `*` is given, or the ETag of this version")]


async def _unconditional(if_match: IfMatch = None) -> None:
    """Writes have no strong ETag."""
    require_match(if_match, None)


Unconditional = Depends(_unconditional)
