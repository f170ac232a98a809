"""The producer writes straight into a bucket: the same samples as on a disk, and the same command continues."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from arwkv_producer.config import GenerateConfig, TokeniseConfig
from arwkv_producer.run import generate as run
from arwkv_producer.run.job import fitted, prepare
from arwkv_producer.run.tokenise import tokenise
from arwkv_store import open_dataset
from producer_captures import MAX_LENGTH, Captures
from producer_recording import RecordedEngine
from store_s3 import s3_running, use_s3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    with s3_running() as address:
        use_s3(monkeypatch, address)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("captured")
        yield "s3://captured"


def test_a_bucket_holds_what_a_disk_does_and_the_same_command_continues(
    captures: Captures, tiny_teacher: Path, tiny_corpus: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    engine = RecordedEngine(str(captures.folder / "base"))
    monkeypatch.setattr(run, "start_engine", lambda config, job: engine)
    monkeypatch.setattr(run, "require_startable", lambda config, job: None)
    flags = {"max_length": MAX_LENGTH, "top_k": 16, "hidden_states": "attention", "samples_per_shard": 20}
    config = GenerateConfig(teacher=str(tiny_teacher), data=(str(tiny_corpus),), out=f"{bucket}/shards", **flags)
    base = captures.open("base")
    assert run.generate(config)["shards"] == len(base.shards)
    s3fs.S3FileSystem(skip_instance_cache=True).rm("captured/shards/shards/part-000003.json")
    again = run.generate(config)
    assert (again["shards"], again["shards_present_before"]) == (1, len(base.shards) - 1)
    assert run.generate(config)["shards"] == 0

    stored = open_dataset(config.out)
    assert len(stored) == len(base)
    for index in range(0, len(base), 7):
        one, other = stored[index], base[index]
        assert one.sample_id == other.sample_id
        assert one.logits is not None
        assert other.logits is not None
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logits.logprobs, other.logits.logprobs)
        np.testing.assert_array_equal(one.hidden["attn.1"], other.hidden["attn.1"])


def test_tokens_go_from_a_bucket_into_a_bucket_and_are_read_from_there(
    tiny_teacher: Path, tiny_corpus: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    lines, remote = tiny_corpus.read_bytes().splitlines(keepends=True), s3fs.S3FileSystem(skip_instance_cache=True)
    remote.pipe_file("captured/text/a.jsonl.zst", zstandard.compress(b"".join(lines[:9])))
    command = TokeniseConfig(
        teacher=str(tiny_teacher),
        data=(f"{bucket}/text",),
        out=f"{bucket}/tokens",
        max_length=MAX_LENGTH,
        tokens_per_shard=2000,
        workers=1,
    )
    shorter = tokenise(command)
    assert shorter["shards"] > 1
    assert tokenise(command)["shards"] == 0
    remote.pipe_file("captured/text/b.jsonl", b"".join(lines[9:]))
    tokenise(command)

    (tmp_path / "corpus.jsonl").write_bytes(b"".join(lines))
    local = replace(command, data=(str(tmp_path / "corpus.jsonl"),), out=str(tmp_path / "local"))
    tokenise(local)
    config = GenerateConfig(teacher=str(tiny_teacher), data=(command.out,), out=str(tmp_path / "capture"))
    (job,), (expected,) = (prepare(fitted(replace(config, data=(out,)))) for out in (command.out, local.out))
    assert job.info.corpus.fingerprint == expected.info.corpus.fingerprint
    assert job.corpus[11].tokens.tolist() == expected.corpus[11].tokens.tolist()
    assert job.corpus[11].source.startswith("a.jsonl.zst:")
