"""Rows of dead producers do not stay in memory; those of living ones do. Copies off a GPU hold what was there."""

from pathlib import Path

import pytest
import torch

from arwkv_producer.teacher.handover import HandoverFolder, HostCopies


def test_what_a_dead_producer_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    abandoned = tmp_path / f"{HandoverFolder.PREFIX}dead"
    abandoned.mkdir()
    (abandoned / "3.safetensors").write_bytes(b"rows")
    (tmp_path / "somebody-elses").mkdir()
    with HandoverFolder(tmp_path) as first, HandoverFolder(tmp_path) as second:
        assert first.path != second.path
        assert {path.name for path in tmp_path.iterdir()} == {"somebody-elses", first.path.name, second.path.name}
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses"]


def test_what_lies_in_main_memory_is_not_copied() -> None:
    copies, x = HostCopies(), torch.ones(3)
    assert copies.start(x) is x
    copies.wait()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_hold_what_was_there_when_they_were_started() -> None:
    copies, kept = HostCopies(), []
    x = torch.zeros(2048, 2048, device="cuda")
    for step in range(50):
        x += torch.ones_like(x) @ torch.ones_like(x) / 2048  # as slow as a layer; in place, as the norms are
        kept.append((step + 1.0, copies.start(x.to(torch.bfloat16, copy=True))))
    copies.wait()
    for value, copied in kept:
        assert copied.device.type == "cpu"
        assert (copied == value).all()
