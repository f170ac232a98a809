"""The parameters that operations share, with their bounds."""

from typing import Annotated

from fastapi import Path, Query

PAGE_LIMIT = 1000
LARGEST_PART = 10**15 - 1
LARGEST_ID = 2**63 - 1

DatasetName = Annotated[str, Path(description="the dataset's folder name", examples=["train"], max_length=255)]
Part = Annotated[int, Path(description="the shard's number", ge=0, le=LARGEST_PART, examples=[0])]
Limit = Annotated[int, Query(description="most items to answer", ge=1, le=PAGE_LIMIT)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before", max_length=1000)]
