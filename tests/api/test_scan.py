"""Looking at the roots: nothing that one dataset, one file or another thread is at keeps the index from following."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from api_eventually import eventually
from api_many import many_shards
from arwkv_api.config import Settings
from arwkv_api.http.app import create_app
from arwkv_api.index import scan
from arwkv_api.index.database import connect
from arwkv_api.index.lease import LEASE_S, due_in_s, lease
from arwkv_api.index.metrics import LAG_LIMIT_S, scan_lag
from arwkv_api.index.orm import DatasetRow, LeaseRow
from arwkv_api.index.pace import Pace, Rest
from arwkv_api.index.query import find_dataset
from arwkv_api.index.scan import scan_root
from arwkv_api.index.scrub import verify_due
from arwkv_api.roots.finding import dataset_folders
from arwkv_api.roots.folders import BREATH_FILES, BREATH_S
from arwkv_api.roots.local import LocalPlace
from arwkv_api.roots.looks import Looks
from arwkv_api.roots.manifests import Shard
from arwkv_api.roots.place import Place, ShardFiles
from store_examples import example_dataset_info, write_example_dataset

Open = Callable[[Settings], TestClient]


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """An empty index."""
    opened = connect(database)
    yield opened
    opened.dispose()


def _set_lease(engine: Engine, **values: float) -> None:
    with Session(engine) as session, session.begin():
        session.execute(update(LeaseRow).values(**values))


def test_only_a_scan_that_came_to_its_end_counts_as_one(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(engine, str(root), 0.0):
        pass
    assert not due_in_s(engine, str(root), 60)
    stopping = threading.Event()
    stopping.set()
    scan_root(engine, str(root), stopping=stopping)
    assert not due_in_s(engine, str(root), 60)
    with monkeypatch.context() as patched:
        patched.setattr("arwkv_api.index.scan.dataset_folders", lambda *_: os.scandir("/no/such/folder"))
        with pytest.raises(FileNotFoundError):
            scan_root(engine, str(root))
    assert not due_in_s(engine, str(root), 60)
    scan_root(engine, str(root))
    assert due_in_s(engine, str(root), 60)
    _set_lease(engine, scanned_at_s=1.0, scan_took_s=0.0)
    assert verify_due(engine, str(root), Pace(1e12, threading.Event())) == (True, 0)
    assert not due_in_s(engine, str(root), 60)


def test_root_is_scanned_once_however_many_ask_at_once(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[Path] = []
    real = dataset_folders
    monkeypatch.setattr("arwkv_api.index.scan.dataset_folders", lambda *given: scans.append(given[0]) or real(*given))
    for scanned in range(1, 6):
        if scanned > 1:
            _set_lease(engine, scanned_at_s=1.0)
        together = threading.Barrier(4)

        def ask(together: threading.Barrier = together) -> None:
            together.wait()
            scan_root(engine, str(root), wait_s=10, fresh_s=60)  # whoever comes second waits for the first

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(scans) == scanned


def test_lease_is_kept_while_a_slow_root_is_listed_and_read(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk on which each step takes longer than half a lease: nobody else may take the root over meanwhile."""
    many_shards(root / "many", 2 * BREATH_FILES)
    clock, real_time, real_monotonic = [0.0], time.time, time.monotonic
    monkeypatch.setattr("arwkv_api.index.lease.time.time", lambda: real_time() + clock[0])
    monkeypatch.setattr("arwkv_api.index.lease.time.monotonic", lambda: real_monotonic() + clock[0])
    held_by_another: list[object] = []

    def slow(_path: object) -> None:
        clock[0] += 0.6 * LEASE_S
        with lease(engine, str(root), 0.0) as other:
            held_by_another.append(other)

    folders, breath, read = scan.dataset_folders, time.sleep, scan.read_shard
    monkeypatch.setattr(scan, "dataset_folders", lambda *given: (slow(one) or one for one in folders(*given)))
    monkeypatch.setattr("arwkv_api.roots.folders.time.sleep", lambda s: breath(s) if s < BREATH_S else slow(s))
    monkeypatch.setattr(scan, "read_shard", lambda *given: (given[1].part % 40 or slow(given), read(*given))[1])
    assert scan_root(engine, str(root)).done
    assert len(held_by_another) > 10
    assert not any(held_by_another)


def test_only_a_look_at_an_indexed_dataset_makes_way_for_requests(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_shards(root / "many", 2 * BREATH_FILES)
    rests: list[float] = []
    monkeypatch.setattr(scan.Rest, "__call__", lambda _rest: rests.append(0.0))
    assert scan_root(engine, str(root)).done
    assert rests == []
    assert scan_root(engine, str(root)).done
    assert len(rests) > 2


def test_rests_take_four_times_as_long_as_the_work_and_count_as_pause_after_it(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, slept = [10.0], list[float]()
    monkeypatch.setattr("arwkv_api.index.pace.time.thread_time", lambda: clock[0])
    monkeypatch.setattr("arwkv_api.index.pace.time.sleep", slept.append)
    rest = Rest()
    rest()
    slept.clear()
    for worked_s in (0.5, 0.0, 2.0):
        clock[0] += worked_s
        rest()
    assert slept == pytest.approx([2.0, 0.0, 8.0])
    for rested_s, busy_s in ((0.0, 10.0), (5.0, 4.0), (9.0, 0.0)):
        with lease(engine, str(root), 0.0) as held, Session(engine) as session, session.begin():
            assert held is not None
            held.scanned(session, 10.0, rested_s)
        with Session(engine) as session:
            assert session.get_one(LeaseRow, str(root)).scan_took_s == pytest.approx(busy_s)


def test_folder_whose_name_is_taken_is_not_listed_and_said_once(
    engine: Engine, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other, listed, looks = tmp_path / "other", [], Looks(0.0)
    write_example_dataset(other / "train")
    scan_root(engine, str(root))
    real = LocalPlace.shard_files
    monkeypatch.setattr(LocalPlace, "shard_files", lambda place, *more: listed.append(place) or real(place, *more))
    for _ in range(3):
        assert scan_root(engine, str(other), looks=looks).done
    assert listed == []
    assert caplog.text.count("name taken by") == 1


def test_dataset_that_comes_while_others_are_verified_is_seen(
    settings: Settings, open_client: Open, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arwkv_api.index.scrub.BATCH_S", 0.1)  # verdicts come more often than looks at roots
    many_shards(root / "many", 400)
    client = open_client(replace(settings, scan_interval_s=0.5, verify_mb_per_s=0.2))
    write_example_dataset(root / "later")
    eventually(lambda: client.get("/v1/datasets/later").status_code == 200)
    assert client.get("/v1/datasets/many").json()["verified_shards"] < 400  # verification was still under way


def test_dataset_is_served_only_after_a_first_whole_look(
    settings: Settings, open_client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "BATCH_SHARDS", 2)
    go_on, real = threading.Event(), scan._read

    def stalled(row: DatasetRow, place: Place, batch: Sequence[ShardFiles], *more: Callable[[], None]) -> list[Shard]:
        if row.name == "train" and batch[0].part == 2:
            go_on.wait(60)
        return real(row, place, batch, *more)

    monkeypatch.setattr(scan, "_read", stalled)
    with TestClient(create_app(settings)) as client:
        try:
            dataset = eventually(lambda: (d := client.get("/v1/datasets/train").json()).get("shards") and d)
            assert (dataset["state"], dataset["shards"]) == ("indexing", 2)
            for path in ("/shards", "/stats", "/timeline", "/shards/4", "/shards/4/data", "/samples/19"):
                answer = client.get(f"/v1/datasets/train{path}")
                assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), path
                assert "still being indexed" in answer.json()["detail"]
            assert client.get("/v1/datasets/not-seen-yet").status_code == 503
        finally:
            go_on.set()
        eventually(lambda: client.get("/v1/datasets/train").json()["state"] == "ready")
        page = client.get("/v1/datasets/train/shards?limit=2").json()
        assert (len(page["items"]), page["committed"]) == (2, 5)
        eventually(lambda: client.get("/v1/datasets/not-seen-yet").status_code == 404)


def test_dataset_indexed_anew_is_not_served_half_and_an_interrupted_scan_is_completed(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(3600)
    scan_root(engine, str(root), looks=looks)
    monkeypatch.setattr(scan, "BATCH_SHARDS", 2)
    stopping, real = threading.Event(), scan._read
    with monkeypatch.context() as patched:
        patched.setattr(scan, "_read", lambda *given: stopping.set() or real(*given))
        scan_root(engine, str(root), anew="train", stopping=stopping)
    with Session(engine) as session:
        train = find_dataset(session, [str(root)], "train")
        assert (train.state, train.shards) == ("indexing", 2)
    scan_root(engine, str(root), looks=looks)
    with Session(engine) as session:
        train = find_dataset(session, [str(root)], "train")
        assert (train.state, train.shards) == ("ready", 5)


def test_one_bad_dataset_holds_up_no_other(client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = example_dataset_info()
    huge = info.model_copy(update={"corpus": info.corpus.model_copy(update={"parts": 2**70})})
    (root / "aaa").mkdir()
    (root / "aaa" / "dataset.json").write_bytes(huge.to_bytes())
    write_example_dataset(root / "zzz")
    eventually(lambda: client.get("/v1/datasets/zzz").status_code == 200)
    bad = client.get("/v1/datasets/aaa").json()
    assert bad["state"] == "unreadable"
    assert f"aaa/dataset.json: corpus.parts {2**70}" in bad["problem"]
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied", "/x/shards"), ZeroDivisionError("why")])
def test_dataset_whose_reading_fails_says_why_and_recovers(
    engine: Engine, root: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    real = LocalPlace.shard_files

    def failing(place: LocalPlace, *more: Callable[[], None]) -> object:
        if place.name == "heldout":
            raise failure
        return real(place, *more)

    with monkeypatch.context() as patched:
        patched.setattr(LocalPlace, "shard_files", failing)
        revisions = []
        for _ in range(2):
            assert scan_root(engine, str(root)).done
            with Session(engine) as session:
                bad, good = (find_dataset(session, [str(root)], name) for name in ("heldout", "train"))
                assert (bad.state, good.state, good.shards) == ("unreadable", "ready", 5)
                assert bad.problem == "shards: Permission denied" or "ZeroDivisionError" in str(bad.problem)
                revisions.append(bad.revision)
        assert revisions[0] == revisions[1]
    assert ("ZeroDivisionError" in caplog.text) == isinstance(failure, ZeroDivisionError)
    caplog.clear()
    scan_root(engine, str(root))
    with Session(engine) as session:
        assert (
            find_dataset(session, [str(root)], "heldout").state,
            find_dataset(session, [str(root)], "heldout").shards,
        ) == (
            "ready",
            3,
        )


def test_slow_root_may_lag_as_long_as_it_takes(engine: Engine, root: Path, settings: Settings) -> None:
    scan_root(engine, str(root))
    for took_s, age_s, expires_at_s, late in (
        (0.1, LAG_LIMIT_S + 10, 0.0, True),
        (60.0, LAG_LIMIT_S + 10, 0.0, False),  # a minute's scan, and five minutes' pause
        (60.0, 3600.0, 0.0, True),
        (0.1, 3600.0, time.time() + 10, False),  # being scanned right now
    ):
        _set_lease(engine, scanned_at_s=time.time() - age_s, scan_took_s=took_s, expires_at_s=expires_at_s)
        with Session(engine) as session:
            assert scan_lag(session, settings).late == late, (took_s, age_s)
    assert not due_in_s(engine, str(root), 1.0)
    _set_lease(engine, scanned_at_s=time.time() - 40, scan_took_s=10.0)
    assert due_in_s(engine, str(root), 1.0)  # left alone for 50 s, whichever process asks


def test_reindexed_unreadable_dataset_stays_unreadable(client: TestClient, root: Path) -> None:
    path = root / "heldout" / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b"example/teacher", b"example/teapher"))
    eventually(lambda: client.get("/v1/datasets/heldout").json()["state"] == "unreadable")
    assert client.post("/v1/datasets/heldout/reindex").json()["state"] == "indexing"
    eventually(lambda: client.get("/v1/datasets/heldout").json()["state"] == "unreadable")


def test_withdrawn_dataset_whose_folder_is_gone_cannot_be_registered(client: TestClient, root: Path) -> None:
    client.delete("/v1/datasets/heldout")
    shutil.rmtree(root / "heldout")
    assert client.post("/v1/datasets", json={"name": "heldout"}).status_code == 404
    shutil.rmtree(root / "train")
    assert client.post("/v1/datasets", json={"name": "train"}).status_code == 404
    assert client.get("/v1/datasets/train").json()["state"] == "missing"
