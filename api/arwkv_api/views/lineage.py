"""Where a dataset comes from and what was made of it, by the hashes that datasets and runs record of each other."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from arwkv_api.index.orm import DatasetRow
from arwkv_api.views.runs import Runs, read_settings

# The last bytes of a sealed document: the digits of its hash, a quote, a brace and a newline.
_SEAL_END, _DIGITS = 67, 64
_SHARDS = re.compile(r"shards_\d+_dataset")


def hash_of(identity: bytes) -> str:
    """The hash by which a run's run.json names a dataset."""
    return identity[-_SEAL_END:][:_DIGITS].decode("ascii", "replace")


def hashes_used(settings: dict[str, Any] | None) -> set[str]:
    """The hashes of the datasets that a run read."""
    return {str(value) for name, value in (settings or {}).items() if _SHARDS.fullmatch(name)}


def datasets_of(engine: Engine, roots: Sequence[str], hashes: set[str]) -> list[str]:
    """Names of the served datasets with one of these hashes."""
    if not hashes:
        return []
    seal = func.substr(DatasetRow.identity, func.length(DatasetRow.identity) - _SEAL_END + 1, _DIGITS)
    served = (DatasetRow.root.in_(roots), DatasetRow.state != "withdrawn")
    with Session(engine) as session:
        rows = session.execute(select(DatasetRow.name, seal).where(*served).order_by(DatasetRow.name)).all()
    return [name for name, digits in rows if bytes(digits).decode("ascii", "replace") in hashes]


def runs_on(runs: Runs, digits: str) -> list[str]:
    """Names of the runs that read the dataset with this hash."""
    return [name for name, folder in runs.folders().items() if digits in hashes_used(read_settings(folder))]
