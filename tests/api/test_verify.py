"""Damage that leaves names, sizes and times alone is found by reading, shown, counted, and gone once it is repaired."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from arwkv_api.config import Settings
from arwkv_api.index.pace import Pace, pass_days, verification_rate
from arwkv_api.index.scan import scan_root
from arwkv_api.index.scrub import verify_due
from arwkv_api.roots.folders import part_files, shard_files
from arwkv_api.roots.local import LocalContent
from arwkv_store import open_dataset

Open = Callable[[Settings], TestClient]
SHARDS = "/v1/datasets/train/shards"


@pytest.fixture
def data(root: Path) -> Path:
    """A file of part 1."""
    return root / "train" / "shards" / "part-000001.hidden.arrow"


def _flip(path: Path, at: int) -> None:
    """Change one byte behind the file system's back: size, time and place stay what they were."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _verifications(client: TestClient, outcome: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(
        (float(x.split()[1]) for x in lines if x.startswith(f'arwkv_verifications_total{{outcome="{outcome}')), 0
    )


def test_asking_reads_a_shard_through(client: TestClient, data: Path) -> None:
    before = client.get(f"{SHARDS}/1").json()
    assert before["verified_at"] is None
    sound = client.post(f"{SHARDS}/1/verify").json()
    assert sound["verified_at"] is not None
    assert {**sound, "verified_at": None} == before
    assert client.get("/v1/datasets/train").json()["verified_shards"] == 1
    assert client.get(SHARDS).json()["items"][1] == sound


def test_flipped_byte_is_found_shown_and_counted(client: TestClient, data: Path) -> None:
    _flip(data, data.stat().st_size // 2)
    assert client.get(f"{SHARDS}/1/data?file=hidden").status_code == 200  # not known yet
    counted = _verifications(client, "corrupt")
    found = client.post(f"{SHARDS}/1/verify").json()
    assert found["state"] == "corrupt"
    assert "part-000001.hidden.arrow: SHA-256" in found["problem"]
    assert "make the part again" in found["problem"]
    assert client.get(f"{SHARDS}/1/data").status_code == 409
    assert client.post(f"{SHARDS}/1/verify").json()["state"] == "corrupt"
    dataset = client.get("/v1/datasets/train").json()
    assert (dataset["shards"], dataset["faulty_shards"], dataset["samples"]) == (4, 1, 16)
    assert _verifications(client, "corrupt") == counted + 2


def test_background_finds_it_by_itself_and_sees_the_mended_file(
    settings: Settings, open_client: Open, data: Path
) -> None:
    good = data.read_bytes()
    _flip(data, 100)
    client = open_client(replace(settings, verify_mb_per_s=1000.0))
    eventually(lambda: client.get(f"{SHARDS}/1").json()["state"] == "corrupt")
    eventually(lambda: client.get("/v1/datasets/train").json()["verified_shards"] == 4)
    data.write_bytes(good)
    eventually(lambda: client.get(f"{SHARDS}/1").json()["state"] == "committed")
    eventually(lambda: client.get("/v1/datasets/train").json()["verified_shards"] == 5)
    assert client.get("/v1/datasets/train").json()["faulty_shards"] == 0


def test_files_named_by_their_content_are_watched_as_any(root: Path) -> None:
    """A bucket's objects that were carried over into a folder."""
    shards = root / "train" / "shards"
    plain = open_dataset(root / "train").shards[1]
    addressed = plain.named(addressed=True)
    for kind, file in addressed.files.items():
        (shards / plain.files[kind].name).rename(shards / file.name)
    (shards / "part-000001.json").write_bytes(addressed.to_bytes())
    before = shard_files(root / "train")
    assert before[1] == part_files(root / "train", 1)
    os.utime(shards / addressed.files["hidden"].name, (1, 1))
    after = shard_files(root / "train")
    assert after[1] == part_files(root / "train", 1)
    assert {part for part in before if before[part] != after[part]} == {1}


def test_background_keeps_its_pace(settings: Settings, open_client: Open) -> None:
    client = open_client(replace(settings, verify_mb_per_s=0.01))  # the first file alone would take seconds
    assert client.post(f"{SHARDS}/2/verify").json()["verified_at"] is not None
    assert client.get("/v1/datasets/train").json()["verified_shards"] == 1


@pytest.mark.parametrize(
    ("terabytes", "asked", "mb_per_s", "days"),
    [
        (0.1, None, 8.0, 0.1447),
        (20, None, 41.34, 5.6),
        (500, None, 200.0, 28.94),
        (10, 8.0, 8.0, 14.47),
        (10, 0.0, 0, 0),
    ],
)
def test_verification_reads_as_fast_as_a_week_needs(
    terabytes: float, asked: float | None, mb_per_s: float, days: float
) -> None:
    rate = verification_rate(terabytes * 1e12, asked)
    assert rate / 1e6 == pytest.approx(mb_per_s, rel=1e-3)
    assert pass_days(terabytes * 1e12, rate) == pytest.approx(days, rel=1e-3)


def test_verification_that_cannot_keep_up_says_so(
    settings: Settings, open_client: Open, caplog: pytest.LogCaptureFixture
) -> None:
    client = open_client(replace(settings, verify_mb_per_s=1e-7))
    eventually(lambda: "verification cannot keep up" in caplog.text)
    days = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("arwkv_verification_days"))
    assert float(days.split()[1]) > 7
    assert caplog.text.count("verification cannot keep up") == 1


def test_corrupt_shard_that_was_mended_unseen_is_sound_once_asked_about(client: TestClient, data: Path) -> None:
    before = client.get("/v1/datasets/train").json()
    _flip(data, 100)
    assert client.post(f"{SHARDS}/1/verify").json()["state"] == "corrupt"
    _flip(data, 100)
    repaired = client.post(f"{SHARDS}/1/verify").json()
    assert (repaired["state"], repaired["problem"]) == ("committed", None)
    assert client.get(f"{SHARDS}/1/data").status_code == 200
    after = client.get("/v1/datasets/train").json()
    assert (after["shards"], after["faulty_shards"], after["tokens"]) == (5, 0, before["tokens"])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EIO])
def test_file_that_cannot_be_opened_just_now_condemns_no_shard(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def failing(path: str | Path, *arguments: int, **more: int) -> int:
        if str(path).endswith(("part-000001.hidden.arrow", "part-000002.json")):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    engine, manifest = client.app.state.service.engine, root / "train" / "shards" / "part-000002.json"  # type: ignore[attr-defined]  # typed as any ASGI
    monkeypatch.setattr("arwkv_api.roots.files.os.open", failing)
    os.utime(manifest)  # to be read anew
    assert scan_root(engine, str(root), wait_s=60).done
    assert client.get(f"{SHARDS}/2").json()["state"] == "committed"
    refused = client.get(f"{SHARDS}/1/data?file=hidden")
    assert refused.status_code == client.post(f"{SHARDS}/1/verify").status_code == 503
    assert os.strerror(number) in refused.json()["detail"]
    # Both datasets have such a file; those that could be read are verified.
    assert verify_due(engine, str(root), Pace(1e12, threading.Event())) == (True, 2)
    assert client.get("/v1/datasets/train").json()["verified_shards"] == 4
    monkeypatch.undo()
    assert client.post(f"{SHARDS}/1/verify").json()["verified_at"] is not None
    assert client.post(f"{SHARDS}/2/verify").json()["state"] == "committed"


def test_error_while_reading_says_nothing_of_the_bytes(
    client: TestClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalContent, "read", dying)
    answer = client.post(f"{SHARDS}/1/verify")
    assert answer.status_code == 503
    assert "part-000001.arrow: Input/output error" in answer.json()["detail"]
    assert client.get(f"{SHARDS}/1").json()["state"] == "committed"
