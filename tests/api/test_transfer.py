"""Downloads: whole files, ranges of them, and every way a caller may ask."""

import email
from email.message import Message
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arwkv_api.errors import RangeNotSatisfiable
from arwkv_api.http.ranges import ByteRange, matches, requested_ranges
from arwkv_store import ShardManifest

DATA = "/v1/datasets/train/shards/0/data"


@pytest.fixture
def content(served_root: Path) -> bytes:
    """What the file holds."""
    return (served_root / "train" / "shards" / "part-000000.arrow").read_bytes()


def test_whole_file_with_its_hash_as_etag(server: str, served_root: Path, content: bytes) -> None:
    answer = httpx.get(server + DATA)
    raw = (served_root / "train" / "shards" / "part-000000.json").read_bytes()
    sha256 = ShardManifest.from_bytes(raw, "part").files["rows"].sha256
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["etag"] == f'"{sha256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.file"
    assert "content-encoding" not in answer.headers


def test_hidden_states_are_a_file_of_their_own(server: str, served_root: Path) -> None:
    expected = (served_root / "train" / "shards" / "part-000000.hidden.arrow").read_bytes()
    assert httpx.get(f"{server}{DATA}?file=hidden").content == expected


def test_head_says_what_get_would(server: str) -> None:
    head, get = httpx.head(server + DATA), httpx.get(server + DATA)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type", "accept-ranges"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-99", slice(5, 100)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=-999999999", slice(0, None)),
        ("bytes=0-999999999", slice(0, None)),
        ("BYTES = 3-4", slice(3, 5)),
        ("bytes=0-9,10-19, 15-29", slice(0, 30)),
    ],
)
def test_one_range(server: str, content: bytes, asked: str, expected: slice) -> None:
    answer = httpx.get(server + DATA, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == content[expected]
    start, stop, _ = expected.indices(len(content))
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(content)}"


def test_several_ranges_come_as_parts(server: str, content: bytes) -> None:
    answer = httpx.get(server + DATA, headers={"Range": "bytes=0-9,100-149,-5"})
    assert answer.status_code == 206
    assert int(answer.headers["content-length"]) == len(answer.content)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.content).get_payload()
    assert isinstance(parts, list)
    bodies = [part.get_payload(decode=True) for part in parts if isinstance(part, Message)]
    spans = [part["Content-Range"] for part in parts if isinstance(part, Message)]
    size = len(content)
    assert spans == [f"bytes 0-9/{size}", f"bytes 100-149/{size}", f"bytes {size - 5}-{size - 1}/{size}"]
    raw = answer.content
    assert [body in raw for body in (content[0:10], content[100:150], content[-5:])] == [True] * 3
    assert len(bodies) == 3


@pytest.mark.parametrize("asked", ["items=0-5", "bytes=", "bytes=a-b", "bytes=5-3", "bytes=--5", "bytes=-", "0-5"])
def test_what_is_no_byte_range_is_ignored(server: str, content: bytes, asked: str) -> None:
    answer = httpx.get(server + DATA, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize(
    "asked", ["bytes=99999999-", "bytes=-0", "bytes=" + ",".join(["0-0"] * 17), "bytes=0-" + "9" * 2000]
)
def test_range_outside_the_file_or_too_many_are_refused(server: str, content: bytes, asked: str) -> None:
    answer = httpx.get(server + DATA, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(content)}"
    assert answer.headers["content-type"] == "application/problem+json"


def test_if_range_gives_the_range_of_the_same_version_only(server: str, content: bytes) -> None:
    etag = httpx.head(server + DATA).headers["etag"]
    same = httpx.get(server + DATA, headers={"Range": "bytes=0-4", "If-Range": etag})
    other = httpx.get(server + DATA, headers={"Range": "bytes=0-4", "If-Range": '"other"'})
    dated = httpx.get(server + DATA, headers={"Range": "bytes=0-4", "If-Range": "Tue, 24 Nov 2026 00:00:00 GMT"})
    assert (same.status_code, same.content) == (206, content[:5])
    assert (other.status_code, other.content) == (200, content)
    assert (dated.status_code, dated.content) == (200, content)


def test_callers_own_copy_is_not_sent_again(server: str) -> None:
    etag = httpx.head(server + DATA).headers["etag"]
    for tags in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = httpx.get(server + DATA, headers={"If-None-Match": tags})
        assert (answer.status_code, answer.content) == (304, b"")
    assert httpx.get(server + DATA, headers={"If-None-Match": '"x"'}).status_code == 200


@hypothesis_settings(max_examples=500, deadline=None)
@given(header=st.text(max_size=80), size_bytes=st.integers(0, 10**12))
def test_any_header_gives_ranges_inside_the_file_or_a_refusal(header: str, size_bytes: int) -> None:
    for value in (header, "bytes=" + header):
        try:
            ranges = requested_ranges(value, None, '"e"', size_bytes, 16)
        except RangeNotSatisfiable:
            continue
        assert ranges is None or all(0 <= r.start < r.stop <= size_bytes for r in ranges)


@hypothesis_settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=1, max_size=16), st.integers(1, 150))
def test_joined_ranges_cover_what_was_asked_once(pairs: list[tuple[int, int]], size_bytes: int) -> None:
    asked = [(min(pair), max(pair)) for pair in pairs]
    header = "bytes=" + ",".join(f"{first}-{last}" for first, last in asked)
    expected = {byte for first, last in asked for byte in range(first, min(last + 1, size_bytes))}
    if not expected:
        with pytest.raises(RangeNotSatisfiable):
            requested_ranges(header, None, '"e"', size_bytes, 16)
        return
    ranges = requested_ranges(header, None, '"e"', size_bytes, 16)
    assert ranges is not None
    covered = [byte for piece in ranges for byte in range(piece.start, piece.stop)]
    assert sorted(expected) == covered


def test_tag_lists() -> None:
    assert matches('"a", W/"b"', 'W/"b"')
    assert not matches("", '"a"')
    assert ByteRange(3, 5).content_range(10) == "bytes 3-4/10"


def test_if_match_is_honoured(server: str) -> None:
    etag = httpx.get(server + DATA).headers["etag"]
    asked = {"*": 200, etag: 200, f'"other", {etag}': 200, '"other"': 412, f"W/{etag}": 412, "": 412}
    for method in ("GET", "HEAD"):
        statuses = {tag: httpx.request(method, server + DATA, headers={"If-Match": tag}).status_code for tag in asked}
        assert statuses == asked


def test_write_with_a_version_that_is_not_the_present_one_is_not_done(client: TestClient) -> None:
    etag = client.get("/v1/datasets/train").headers["etag"]
    assert client.delete("/v1/datasets/train", headers={"If-Match": etag}).status_code == 412
    assert client.get("/v1/datasets/train").status_code == 200
    assert client.delete("/v1/datasets/train", headers={"If-Match": "*"}).status_code == 204
