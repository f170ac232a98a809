"""`store reindex` asks the service that owns the index."""

from pathlib import Path

import pytest

from arwkv_store import NotFound, UsageError
from arwkv_store.commands import reindex
from arwkv_store.commands.reindex import reindex_served
from arwkv_store.format.summary import SUMMARY_FILE
from store_examples import write_example_dataset
from store_server import served


def test_service_is_asked_to_read_its_manifests_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reindex, "POLL_S", 0.0)
    write_example_dataset(tmp_path)
    with served(tmp_path) as service:
        assert reindex_served(service.uri) == {"state": "ready", "shards": 3, "tokens": 305}
        assert service.requests == ["POST /v1/datasets/example/reindex", *["/v1/datasets/example"] * 2]
        with pytest.raises(NotFound):
            reindex_served(service.uri.replace("example", "other"))


def test_summary_of_a_folder_is_written_anew(tmp_path: Path) -> None:
    write_example_dataset(tmp_path)
    assert reindex.reindex(str(tmp_path)) == {"uri": str(tmp_path), "shards": 3, "tokens": 305}
    assert (tmp_path / SUMMARY_FILE).exists()


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}"])
def test_answer_of_another_service_is_refused(tmp_path: Path, answer: bytes) -> None:
    write_example_dataset(tmp_path)
    with served(tmp_path) as service:
        service.fault = lambda path, body: (200, answer)
        with pytest.raises(UsageError, match="the answer is not from a dataset service"):
            reindex_served(service.uri)
