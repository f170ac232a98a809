"""A root with two example datasets, the application over it, and a real server on loopback."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api_serving import serving
from arwkv_api.app import create_app
from arwkv_api.config import Settings
from store_examples import example_dataset_info, write_example_dataset

TRAIN_PARTS = 5


@pytest.fixture(autouse=True)
def no_unexpected_failure(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The service logs what it did not expect, with a traceback, and goes on; no test expects any of it."""
    yield
    assert not [r.getMessage() for r in caplog.get_records("call") if r.exc_info and r.name.startswith("arwkv_api")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with datasets `train` (20 samples in 5 parts) and `heldout` (10 in 3)."""
    write_example_dataset(tmp_path / "root" / "train", info=example_dataset_info(samples=20))
    write_example_dataset(tmp_path / "root" / "heldout")
    return tmp_path / "root"


@pytest.fixture
def settings(root: Path, tmp_path: Path) -> Settings:
    """Settings over `root`, with an index of its own, looked at twenty times a second."""
    return Settings(
        roots=(root,), runs=(), database=f"sqlite:///{tmp_path / 'index' / 'index.sqlite3'}", scan_interval_s=0.05
    )


@pytest.fixture
def open_client() -> Iterator[Callable[[Settings], TestClient]]:
    """Starts an application for given settings and stops it at the end of the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(TestClient(create_app(settings)))


@pytest.fixture
def client(settings: Settings, open_client: Callable[[Settings], TestClient]) -> TestClient:
    """The application over `root`, whose datasets are indexed already."""
    return open_client(settings)


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `root`, for the server that the whole session shares: read only."""
    folder = tmp_path_factory.mktemp("served")
    write_example_dataset(folder / "root" / "train", info=example_dataset_info(samples=20))
    write_example_dataset(folder / "root" / "heldout")
    return folder / "root"


@pytest.fixture(scope="session")
def server(served_root: Path) -> Iterator[str]:
    """The address of a real server over `served_root`."""
    with serving("--root", str(served_root), cache=served_root.parent / "cache") as (url, _):
        yield url
