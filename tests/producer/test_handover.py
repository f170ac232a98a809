"""Rows of dead producers do not stay in memory; those of living ones do."""

from pathlib import Path

from arwkv_producer.teacher.handover import HandoverFolder


def test_what_a_dead_producer_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    abandoned = tmp_path / f"{HandoverFolder.PREFIX}dead"
    abandoned.mkdir()
    (abandoned / "3.safetensors").write_bytes(b"rows")
    (tmp_path / "somebody-elses").mkdir()
    with HandoverFolder(tmp_path) as first, HandoverFolder(tmp_path) as second:
        assert first.path != second.path
        assert {path.name for path in tmp_path.iterdir()} == {"somebody-elses", first.path.name, second.path.name}
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses"]
