"""A root with two example datasets, the application over it, and a real server on loopback."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api_eventually import eventually
from api_postgres import new_database, postgres_server
from api_serving import serving
from arwkv_api.config import Settings
from arwkv_api.http.app import create_app
from arwkv_api.index.database import connect
from store_examples import example_dataset_info, write_example_dataset


@pytest.fixture(autouse=True)
def no_unexpected_failure(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The service logs what it did not expect, with a traceback, and goes on; no test expects any of it."""
    yield
    assert not [r.getMessage() for r in caplog.get_records("call") if r.exc_info and r.name.startswith("arwkv_api")]


@pytest.fixture
def root(served_root: Path, tmp_path: Path) -> Path:
    """A folder with datasets `train` (20 samples in 5 parts) and `heldout` (10 in 3), the test's own."""
    copied = shutil.copytree(served_root, tmp_path / "root", copy_function=shutil.copy)
    for folder in copied.glob("*/shards"):
        os.utime(folder)  # as if its files had been written now
    return copied


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The socket folder of a PostgreSQL server that the session's tests share."""
    with postgres_server() as socket_folder:
        yield socket_folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty index, on each database that the service knows."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'index' / 'index.sqlite3'}"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite index with the tables of today."""
    file = tmp_path_factory.mktemp("migrated") / "index.sqlite3"
    connect(f"sqlite:///{file}").dispose()
    return file


@pytest.fixture
def settings(root: Path, database: str, migrated: Path) -> Settings:
    """Settings over `root`, with an index of its own, looked at twenty times a second."""
    if database.startswith("sqlite"):
        file = Path(database.removeprefix("sqlite:///"))
        file.parent.mkdir(exist_ok=True)
        shutil.copy(migrated, file)
    return Settings(roots=(str(root),), runs=(), database=database, scan_interval_s=0.05, trusted_hosts=("testserver",))


@pytest.fixture
def open_client() -> Iterator[Callable[[Settings], TestClient]]:
    """Starts an application for given settings, waits for its first scan, and stops it at the end of the test."""
    with ExitStack() as stack:

        def start(settings: Settings) -> TestClient:
            client = stack.enter_context(TestClient(create_app(settings)))
            eventually(client.app.state.service.scanned_once.is_set)  # type: ignore[attr-defined]  # typed as any ASGI
            return client

        yield start


@pytest.fixture
def client(settings: Settings, open_client: Callable[[Settings], TestClient]) -> TestClient:
    """The application over `root`, whose datasets are indexed already."""
    return open_client(settings)


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets `train` and `heldout` of the server that the whole session shares: read only."""
    folder = tmp_path_factory.mktemp("served")
    write_example_dataset(folder / "root" / "train", info=example_dataset_info(samples=20))
    write_example_dataset(folder / "root" / "heldout")
    return folder / "root"


@pytest.fixture(scope="session")
def server(served_root: Path) -> Iterator[str]:
    """The address of a real server over `served_root`."""
    with serving("--root", str(served_root), cache=served_root.parent / "cache") as (url, _):
        yield url
