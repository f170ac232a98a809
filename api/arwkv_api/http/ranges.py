"""Byte ranges of one file: the Range and If-Range headers of RFC 9110, sections 13.1.5 and 14."""

import re
from dataclasses import dataclass

from arwkv_api.errors import PreconditionFailed, RangeNotSatisfiable

_SPEC = re.compile(r"(?a:(\d{0,19})-(\d{0,19}))")
HEADER_LIMIT_CHARACTERS = 1000


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    def content_range(self, total_bytes: int) -> str:
        """The value of Content-Range for this part of a file of `total_bytes`."""
        return f"bytes {self.start}-{self.stop - 1}/{total_bytes}"


def requested_ranges(
    header: str | None, if_range: str | None, etag: str, size_bytes: int, limit: int
) -> list[ByteRange] | None:
    """The ranges to send, in the order of the file, adjacent ones joined; None means the whole file.

    A header that is not a byte range, or whose If-Range names another version, is ignored, as the RFC requires. Raises
    RangeNotSatisfiable if no range overlaps the file, or for more than `limit` ranges.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    unit, _, rest = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    specs = [spec.strip() for spec in rest[:HEADER_LIMIT_CHARACTERS].split(",") if spec.strip()]
    if len(rest) > HEADER_LIMIT_CHARACTERS or len(specs) > limit:
        raise RangeNotSatisfiable(
            f"Range: {len(rest.split(','))} ranges requested, at most {limit} are allowed; request fewer", size_bytes
        )
    matches = [_SPEC.fullmatch(spec) for spec in specs]
    bounds = [match.groups() for match in matches if match is not None and match.group() != "-"]
    if not specs or len(bounds) < len(specs) or any(a and b and int(a) > int(b) for a, b in bounds):
        return None
    found = [piece for piece in (_resolve(first, last, size_bytes) for first, last in bounds) if piece is not None]
    if not found:
        raise RangeNotSatisfiable(f"Range: {rest!r} lies outside the file's {size_bytes} bytes", size_bytes)
    return _joined(found)


def matches(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match header names `etag`, by weak comparison (RFC 9110, section 13.1.2)."""
    given = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return given == ["*"] or etag.removeprefix("W/") in given


def require_match(if_match: str | None, etag: str | None) -> None:
    """Raise PreconditionFailed unless an If-Match header, if any, names `etag`, by strong comparison (section 13.1.1).

    `etag` is None without a strong ETag: then only `*` matches.
    """
    given = [] if if_match is None else [tag.strip() for tag in if_match.split(",")]
    if if_match is not None and given != ["*"] and etag not in given:
        raise PreconditionFailed(f"If-Match: {if_match[:100]!r} is not the present version ({etag})")


def _resolve(first: str, last: str, size_bytes: int) -> ByteRange | None:
    if not first:
        start, stop = max(size_bytes - int(last), 0), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    return ByteRange(start, stop) if start < stop else None


def _joined(found: list[ByteRange]) -> list[ByteRange]:
    joined: list[ByteRange] = []
    for piece in sorted(found, key=lambda piece: piece.start):
        if joined and piece.start <= joined[-1].stop:
            joined[-1] = ByteRange(joined[-1].start, max(joined[-1].stop, piece.stop))
        else:
            joined.append(piece)
    return joined
