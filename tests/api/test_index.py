"""The index under stress: two processes at once, a process killed at any moment, many starts and stops."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import Connection, create_engine, delete, select, update
from sqlalchemy.orm import Session

import arwkv_api
from api_eventually import eventually
from api_many import many_shards
from api_serving import serving
from arwkv_api.config import Settings
from arwkv_api.index.database import connect
from arwkv_api.index.lease import lease
from arwkv_api.index.orm import Base, DatasetRow, LeaseRow, ShardRow
from arwkv_api.index.scan import scan_root
from arwkv_api.index.timeline import timeline_of
from arwkv_store import TryAgain, open_dataset

SHARDS = 1200


def _totals(database: str) -> tuple[int, int, int, int]:
    engine = connect(database)
    with Session(engine) as session:
        row = session.scalar(select(DatasetRow))
        assert row is not None
        counted = session.scalars(select(ShardRow.tokens)).all()
        assert (row.shards, row.tokens) == (len(counted), sum(counted))
        totals = (row.shards, row.samples, row.tokens, row.size_bytes)
    engine.dispose()
    return totals


def test_scan_of_more_shards_than_a_batch_gives_the_readers_statistics(tmp_path: Path, database: str) -> None:
    folder = many_shards(tmp_path / "root" / "many", SHARDS)
    engine = connect(database)
    assert scan_root(engine, str(tmp_path / "root")).changed_shards == SHARDS
    assert scan_root(engine, str(tmp_path / "root")).changed_shards == 0
    with Session(engine) as session:
        row = session.scalar(select(DatasetRow))
        assert row is not None
        expected = open_dataset(folder).stats()
        assert (row.shards, row.samples, row.tokens) == (SHARDS, expected.samples, expected.tokens)
    for path in (folder / "shards").glob("*.json"):
        os.utime(path)  # every manifest looks new: more than is taken out one batch at a time
    assert scan_root(engine, str(tmp_path / "root")).changed_shards == SHARDS
    engine.dispose()
    assert _totals(database)[0] == SHARDS


@pytest.mark.slow
def test_processes_on_one_database_index_each_shard_once(tmp_path: Path, database: str) -> None:
    many_shards(tmp_path / "root" / "many", SHARDS)
    flags = ["--root", str(tmp_path / "root"), "--database", database, "--scan-interval-s", "0.05"]
    with (
        serving(*flags, cache=tmp_path / "a") as (one, _),
        serving(*flags, cache=tmp_path / "b") as (two, _),
    ):
        for url in (one, two):
            eventually(lambda url=url: httpx.get(f"{url}/v1/datasets/many").json().get("shards") == SHARDS)
        logs = [(tmp_path / name / "api.log").read_text() for name in "ab"]
        assert sum(int(n) for log in logs for n in re.findall(r"many: (\d+) shards read", log)) == SHARDS
        for url in (one, two):
            assert httpx.post(f"{url}/v1/datasets", json={"name": "many"}, timeout=60).json()["shards"] == SHARDS
        assert httpx.get(f"{one}/v1/datasets/many/stats").json() == httpx.get(f"{two}/v1/datasets/many/stats").json()
    assert _totals(database)[0] == SHARDS


def test_lease_has_one_holder_and_a_stalled_one_is_fenced_off(database: str) -> None:
    engine = connect(database)
    with lease(engine, "root", 0.0) as first:
        assert first is not None
        with lease(engine, "root", 0.0) as second:
            assert second is None
        stolen = create_engine(engine.url)
        with stolen.begin() as connection:
            connection.exec_driver_sql("UPDATE leases SET holder = 'another'")
        with Session(engine) as session, pytest.raises(TryAgain, match="another process scans it now"):
            first.renew(session)
        stolen.dispose()
    engine.dispose()


def test_migrations_make_the_tables_that_the_code_knows(database: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = connect(database)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_index_of_an_earlier_release_is_read_anew_and_withdrawals_stay(root: Path, database: str) -> None:
    engine = connect(database)
    scan_root(engine, str(root))
    with Session(engine) as session, session.begin():
        session.connection().exec_driver_sql("UPDATE datasets SET state = 'withdrawn' WHERE name = 'heldout'")
    with engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(arwkv_api.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.commit()
    engine.dispose()
    engine = connect(database)
    with Session(engine) as session:
        assert session.scalars(select(ShardRow)).all() == []
    assert scan_root(engine, str(root)).changed_shards == 5
    with Session(engine) as session:
        train, heldout = session.scalars(select(DatasetRow).order_by(DatasetRow.name.desc())).all()
        assert (train.shards, heldout.state) == (5, "withdrawn")
        assert timeline_of(train.growth, 200)[-1].tokens == train.tokens
    engine.dispose()


@pytest.mark.slow
def test_concurrent_starts_on_an_empty_database_migrate_once(database: str) -> None:
    engines, errors = [], []

    def start() -> None:
        try:
            engines.append(connect(database))
        except Exception as error:  # noqa: BLE001  # whatever it is, the test reports it
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert not errors


def _begun(connection: Connection) -> bool:
    """True once some shards are in the index; ends the transaction, so that the next look sees what is new."""
    with connection.begin():
        return connection.execute(select(ShardRow.id).limit(1)).first() is not None


@pytest.mark.crash
def test_killed_scan_leaves_a_consistent_index_that_the_next_start_completes(tmp_path: Path, database: str) -> None:
    folder = many_shards(tmp_path / "root" / "many", 3 * SHARDS)
    command = [sys.executable, "-m", "arwkv_api", "serve", "--root", str(tmp_path / "root"), "--database", database]
    dice = random.Random(0)
    while_writing = 0
    for _ in range(12):
        engine = connect(database)
        with Session(engine) as session, session.begin():
            session.execute(delete(DatasetRow))  # everything is to be written again
            session.execute(update(LeaseRow).values(scanned_at_s=0))
        process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.DEVNULL)
        with engine.connect() as watching:
            eventually(lambda watching=watching: _begun(watching))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5 * dice.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Session(engine) as session:
            for row in session.scalars(select(DatasetRow)):
                tokens = session.scalars(select(ShardRow.tokens)).all()
                assert (row.shards, row.tokens) == (len(tokens), sum(tokens))
                while_writing += 0 < len(tokens) < 3 * SHARDS
            # The dead process's lease runs out by itself; the test does not wait for that.
            session.connection().exec_driver_sql("UPDATE leases SET expires_at_s = 0")
            session.commit()
        engine.dispose()
    with serving("--root", str(tmp_path / "root"), "--database", database, cache=tmp_path) as (url, _):
        answer = httpx.post(f"{url}/v1/datasets", json={"name": "many"}, timeout=60).json()
    assert while_writing >= 6
    assert (answer["shards"], answer["tokens"]) == (3 * SHARDS, open_dataset(folder).stats().tokens)


@pytest.mark.parametrize("cycles", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_starts_and_stops_leak_neither_descriptors_nor_threads(settings: Settings, cycles: int) -> None:
    from arwkv_api.http.app import create_app

    def cycle() -> tuple[int, int]:
        with TestClient(create_app(replace(settings, verify_mb_per_s=100.0))) as client:
            # 404 before the first look, 503 while the dataset is indexed
            assert client.get("/v1/datasets/train/shards/0/data").status_code in (200, 404, 503)
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    cycle()
    before = cycle()
    after = [cycle() for _ in range(cycles)][-1]
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2


def test_sqlite_is_set_up_for_concurrent_readers(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'index.sqlite3'}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    engine.dispose()
