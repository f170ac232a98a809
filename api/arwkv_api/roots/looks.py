"""When a dataset's shards need not be compared: its place says that none came or went."""

import time
from dataclasses import dataclass, field

from arwkv_api.roots.place import Place, is_remote

# A folder's time may stand still for a tick of the clock; names may have come after a listing within this.
SETTLED_NS = 2_000_000_000


@dataclass
class Looks:
    """What one scanning thread saw last. A file changed in place leaves its folder's time alone, so that every
    `deep_every_s` seconds a folder is listed all the same."""

    deep_every_s: float
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)

    def unchanged(self, place: Place) -> bool:
        """True where the dataset was read not long ago and its shards have the mark that they had then."""
        mark, deep_at_s = self._seen.get(place.uri, (-1, 0.0))
        return time.monotonic() < deep_at_s and place.shards_mark() == mark

    def is_news(self, place: Place, other: str) -> bool:
        """True when it was not said before that `place` has the name of `other`."""
        said, self._said[place.uri] = self._said.get(place.uri), other
        return said != other

    def saw(self, place: Place, mark: int) -> None:
        """Remember that everything in `place` was read, after its shards had `mark`."""
        if mark > 0 and (is_remote(place.uri) or mark < time.time_ns() - SETTLED_NS):
            self._seen[place.uri] = (mark, time.monotonic() + self.deep_every_s)
