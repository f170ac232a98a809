"""A model folder that a download left unfinished, or that has bytes which are no text, is one line with exit code 2."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import INDEX, require_whole_weights
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.model.loading import load_student

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


@pytest.fixture
def base(tiny_teacher: Path, tmp_path: Path) -> Path:
    """In two files, as large checkpoints are."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_teacher, folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + (at % 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as raised:
        open_base(str(folder))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_whole_base_is_opened(base: Path) -> None:
    assert len(open_base(str(base)).file_of_tensor) > 20


def test_a_base_with_a_file_missing_cut_or_not_fetched_is_refused(base: Path) -> None:
    second = base / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    for left in (content[:-1], content[:100], content[:4], b"", content + b"\0"):
        second.write_bytes(left)
        assert f"{second} is not whole ({len(left):,} bytes); fetch it again" in refusal(base)
    second.write_bytes(POINTER)
    assert f'{second} is a Git LFS pointer, not the file; fetch it with "git lfs pull"' in refusal(base)
    second.unlink()
    assert f"no {second.name} in {base} (1 of the 2 files that {INDEX} names are missing)" in refusal(base)
    with pytest.raises(NotFound):
        require_whole_weights("model", base)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_base_with_a_json_file_cut_or_not_fetched_is_refused(base: Path, name: str) -> None:
    content = (base / name).read_bytes()
    for left, message in (
        (content[:300], "restore the file from the model's source"),
        (b"[]", "list, not an object"),
        (POINTER, "is a Git LFS pointer"),
        (b'{"a": "\xff"}', "restore the file"),
    ):
        (base / name).write_bytes(left)
        said = refusal(base)
        assert message in said
        assert name in said


def test_a_student_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "arwkv"}')
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(UsageError, match="is a Git LFS pointer"):
        load_student(tmp_path)
