"""When a shards folder need not be listed: its own time says that no name in it came or went."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from arwkv_store.format.layout import SHARDS_FOLDER

# A folder's time may stand still for a tick of the clock; names may have come after a listing within this.
SETTLED_NS = 2_000_000_000


@dataclass
class Looks:
    """What one scanning thread saw last. A file changed in place leaves its folder's time alone, so that every
    `deep_every_s` seconds a folder is listed all the same."""

    deep_every_s: float
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)
    _said: dict[Path, str] = field(default_factory=dict)

    def unchanged(self, folder: Path) -> bool:
        """True where dataset `folder` was read not long ago and its shards folder has the time that it had then."""
        time_ns, deep_at_s = self._seen.get(folder, (-1, 0.0))
        return time.monotonic() < deep_at_s and shards_time_ns(folder) == time_ns

    def is_news(self, folder: Path, other: str) -> bool:
        """True when it was not said before that `folder` has the name of `other`."""
        said, self._said[folder] = self._said.get(folder), other
        return said != other

    def saw(self, folder: Path, time_ns: int) -> None:
        """Remember that everything in `folder` was read, after its shards folder had `time_ns`."""
        if 0 < time_ns < time.time_ns() - SETTLED_NS:
            self._seen[folder] = (time_ns, time.monotonic() + self.deep_every_s)


def shards_time_ns(folder: Path) -> int:
    """The time of a dataset's shards folder; -2 where there is none."""
    try:
        return (folder / SHARDS_FOLDER).lstat().st_mtime_ns
    except OSError:
        return -2
