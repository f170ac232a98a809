"""`producer tokenise`: the rows a capture from text would have, made in pieces, once, and longer when the text is."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from arwkv_producer.config import GenerateConfig, PlanConfig, TokeniseConfig
from arwkv_producer.run.generate import generate
from arwkv_producer.run.job import fitted, prepare
from arwkv_producer.run.plan import plan
from arwkv_producer.run.tokenise import tokenise
from arwkv_producer.text.corpus import Corpus
from arwkv_producer.tokens.journal import Journal, journal_path
from arwkv_producer.tokens.stored import StoredCorpus, stored_corpus
from arwkv_store import Dataset, Sample, create_dataset, open_dataset
from arwkv_store.commands.copy import copy_dataset
from arwkv_store.commands.verify import set_aside, verify_dataset
from arwkv_store.errors import ConfigurationDiffers, TryAgain, UsageError

MAX_LENGTH = 64
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files, 12 and 9 documents, one of them twice, one of them empty."""
    folder = tmp_path_factory.mktemp("text")
    lines = tiny_corpus.read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join([*lines[:11], lines[3]]))
    (folder / "b.jsonl").write_text("".join([*lines[11:18], json.dumps({"text": ""}) + "\n", lines[18]]))
    return folder


@pytest.fixture
def command(tiny_teacher: Path, corpus: Path, tmp_path: Path) -> TokeniseConfig:
    """Small parts, in this process."""
    return TokeniseConfig(
        teacher=str(tiny_teacher),
        data=(str(corpus),),
        out=str(tmp_path / "tokens"),
        max_length=MAX_LENGTH,
        tokens_per_shard=2000,
        workers=1,
    )


def direct(command: TokeniseConfig, **flags: Any) -> list[Corpus]:
    """What `producer generate` reads from the same text: the corpus, and its held-out documents."""
    config = GenerateConfig(
        teacher=command.teacher,
        data=command.data,
        out=command.out + "-direct",
        max_length=command.max_length,
        chat=command.chat,
        held_out=command.held_out,
        keep_duplicates=command.keep_duplicates,
        **flags,
    )
    return [job.corpus for job in prepare(config) if isinstance(job.corpus, Corpus)]


def assert_same(dataset: Dataset, corpus: Corpus) -> None:
    assert len(dataset) == len(corpus)
    for sample_id, sample in enumerate(dataset):
        expected = corpus[sample_id]
        assert (sample.sample_id, sample.source) == (sample_id, expected.source)
        assert np.array_equal(sample.tokens, expected.tokens)
        assert np.array_equal(sample.loss_mask, expected.loss_mask)


def parts(out: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out).glob("shards/part-*.arrow")}


def rows(out: str | Path) -> list[tuple[list[int], str]]:
    return [(sample.tokens.tolist(), sample.source) for sample in open_dataset(out)]


def test_rows_are_those_of_the_text_itself(command: TokeniseConfig) -> None:
    command = replace(command, held_out=0.3)
    summary = tokenise(command)
    corpora = direct(command)
    for out, corpus in zip((command.out, command.out + "-held-out"), corpora, strict=True):
        dataset = open_dataset(out)
        assert_same(dataset, corpus)
        assert len(dataset.shards) > 1
        assert dataset.shards[0].files.keys() == {"rows"}
        assert dataset.stats().bytes_by_column.keys() == {"rows"}
        report = json.loads((Path(out) / "corpus.json").read_text())
        assert report["lengths"][-1]["fingerprint"] == corpus.fingerprint()
        assert {name: report[name] for name in ("documents", "documents_cut", "tokens_counted")} == {
            name: getattr(corpus.report, name) for name in ("documents", "documents_cut", "tokens_counted")
        }
        *_, verdict = verify_dataset(out, deep=True)
        assert (verdict.damaged, verdict.missing) == ({}, [])
    assert summary["corpus"]["documents_duplicate"] + summary["held_out"]["corpus"]["documents_duplicate"] == 1
    assert summary["corpus"]["files_read"] == ["a.jsonl", "b.jsonl"]


def test_number_of_processes_changes_no_byte(command: TokeniseConfig, corpus: Path, tmp_path: Path) -> None:
    lines = "".join(path.read_text() for path in sorted(corpus.iterdir())).splitlines()
    long = tmp_path / "long.jsonl"
    many = [
        json.dumps({"text": json.loads(line)["text"][:120] + str(number)}) for line in lines for number in range(30)
    ]
    long.write_text("\n".join(many) + "\n")
    command = replace(command, data=(str(long),), held_out=0.2)
    for workers in (1, 2):
        tokenise(replace(command, out=str(tmp_path / f"by-{workers}"), workers=workers))
    assert len(parts(tmp_path / "by-1")) > 3
    assert parts(tmp_path / "by-1") == parts(tmp_path / "by-2")
    assert parts(tmp_path / "by-1-held-out") == parts(tmp_path / "by-2-held-out")


def test_weighted_sources_are_mixed_as_in_a_capture(command: TokeniseConfig, corpus: Path) -> None:
    command = replace(command, data=(f"{corpus}/a.jsonl:0.8", f"{corpus}/b.jsonl:0.2"))
    summary = tokenise(command)
    (expected,) = direct(command)
    assert_same(open_dataset(command.out), expected)
    assert summary["corpus"]["documents_beyond_share"] == expected.report.documents_beyond_share > 0
    again = tokenise(command)
    assert (again["shards"], again["corpus"]["documents_beyond_share"]) == (0, expected.report.documents_beyond_share)


def test_conversations_and_pairs_keep_their_masks(command: TokeniseConfig, tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(tiny_teacher, tmp_path / "chat-teacher")
    settings = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}))
    turns = [{"role": "user", "content": "def"}, {"role": "assistant", "content": "return 1"}]
    records = [
        {"messages": turns},
        {"prompt": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "pass"}]},
    ]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = replace(command, teacher=str(teacher), data=(str(data),), chat=True)
    summary = tokenise(command)
    (expected,) = direct(command)
    assert_same(open_dataset(command.out), expected)
    assert 0 < summary["corpus"]["tokens_counted"] < summary["tokens"]
    assert summary["corpus"]["turns"]["assistant"] == 3


@pytest.fixture
def stopped(command: TokeniseConfig, monkeypatch: pytest.MonkeyPatch) -> TokeniseConfig:
    """The command after a run that ended abruptly at its third part."""
    from arwkv_store import Writer

    write = Writer.write_shard

    def fail(writer: Writer, part: int, samples: list[Sample], **how: Any) -> Any:
        if part == 2:
            raise KeyboardInterrupt
        return write(writer, part, samples, **how)

    monkeypatch.setattr(Writer, "write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        tokenise(command)
    monkeypatch.setattr(Writer, "write_shard", write)
    assert len(parts(command.out)) == 2
    return command


def test_same_command_continues_after_a_stop(stopped: TokeniseConfig, tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match="is not complete"):
        fitted(GenerateConfig(teacher=stopped.teacher, data=(stopped.out,), out="x"))
    summary = tokenise(stopped)
    assert summary["shards_present_before"] == 2
    whole = replace(stopped, out=str(tmp_path / "whole"))
    tokenise(whole)
    assert parts(stopped.out) == parts(whole.out)
    assert tokenise(stopped)["shards"] == 0


@pytest.mark.parametrize("lost", ["the journal", "a part"])
def test_what_is_lost_is_made_again(command: TokeniseConfig, lost: str) -> None:
    command = replace(command, held_out=0.3)
    tokenise(command)
    before, apart = parts(command.out), parts(command.out + "-held-out")
    if lost == "the journal":
        (Path(command.out) / "tokenise.sqlite").unlink()
    else:
        set_aside(Path(command.out), 1)
        set_aside(Path(command.out + "-held-out"), 0)
    assert tokenise(command)["shards"] == (0 if lost == "the journal" else 1)
    assert (parts(command.out), parts(command.out + "-held-out")) == (before, apart)


@pytest.mark.crash
def test_killed_run_leaves_no_process_and_goes_on(command: TokeniseConfig, corpus: Path, tmp_path: Path) -> None:
    words = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    data = tmp_path / "much.jsonl"
    many = [json.dumps({"text": json.loads(line)["text"] + str(number)}) for number in range(90) for line in words]
    data.write_text("\n".join(many) + "\n")
    command = replace(command, data=(str(data),), workers=2, tokens_per_shard=20_000)
    code = "from arwkv_producer.run.tokenise import tokenise\nfrom arwkv_producer.config import TokeniseConfig\n"
    script = tmp_path / "run.py"
    script.write_text(f"{code}if __name__ == '__main__':\n    tokenise({command!r})\n")
    run = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    while len(parts(command.out)) < 16:  # behind the first batch, which needs no worker
        assert run.poll() is None
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) >= 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    committed = len(open_dataset(command.out).shards)
    summary = tokenise(command)
    assert committed - 1 <= summary["shards_present_before"] <= committed + 1
    (expected,) = direct(command)
    assert_same(open_dataset(command.out), expected)


def test_appended_documents_are_added_and_what_exists_stays(
    command: TokeniseConfig, tmp_path: Path, corpus: Path
) -> None:
    folder = shutil.copytree(corpus, tmp_path / "growing")
    command = replace(command, data=(str(folder),), held_out=0.3)
    tokenise(command)
    shorter, before = open_dataset(command.out), parts(command.out)
    copy = str(tmp_path / "copy")
    *_, copied = copy_dataset(command.out, copy)
    assert copied.parts == len(before)
    held_out = rows(command.out + "-held-out")
    new = ["a new document of its own, " * 20, json.loads((folder / "b.jsonl").read_text().splitlines()[0])["text"]]
    with (folder / "a.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in new)
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": f"number {n} of many " * 30}) + "\n" for n in range(8)))
    summary = tokenise(command)
    assert summary["corpus"]["documents_duplicate"] + summary["held_out"]["corpus"]["documents_duplicate"] == 2
    assert before.items() <= parts(command.out).items()
    longer = open_dataset(command.out)
    assert [sample.sample_id for sample in longer] == list(range(len(longer)))
    assert longer[len(shorter)].source == "a.jsonl:13"
    assert [sample.source for sample in shorter] == [longer[at].source for at in range(len(shorter))]
    assert rows(command.out + "-held-out")[: len(held_out)] == held_out
    lengths = json.loads((Path(command.out) / "corpus.json").read_text())["lengths"]
    assert [length["samples"] for length in lengths] == [len(shorter), len(longer)]
    extended = json.loads((Path(command.out) / "corpus.json").read_text())["extended"]
    assert [one["shards"] for one in extended] == [length["shards"] for length in lengths]
    moments = [moment for one in extended for moment in (one["began_at_s"], one["ended_at_s"])]
    assert moments == sorted(moments)
    *_, copied = copy_dataset(command.out, copy)
    assert copied.parts == len(parts(command.out)) - len(before)
    found = stored_corpus([copy])
    assert found is not None
    assert (len(found), found.fingerprint()) == (len(longer), lengths[-1]["fingerprint"])
    set_aside(Path(command.out), len(before))
    again = parts(command.out)
    tokenise(command)
    assert len(parts(command.out)) == len(again) + 1


def test_capture_that_was_begun_goes_on_with_the_shorter_dataset(
    command: TokeniseConfig, tmp_path: Path, corpus: Path
) -> None:
    tokenise(replace(command, data=(f"{corpus}/a.jsonl",)))
    capture = GenerateConfig(teacher=command.teacher, data=(command.out,), out=str(tmp_path / "capture"))
    (begun,) = prepare(fitted(capture))
    create_dataset(capture.out, begun.info)
    tokenise(command)
    (goes_on,), (new,) = (prepare(fitted(replace(capture, out=out))) for out in (capture.out, capture.out + "-new"))
    assert goes_on.info.corpus == begun.info.corpus
    assert len(new.corpus) == len(open_dataset(command.out)) > len(begun.corpus)


def test_extend_names_further_text_alone(command: TokeniseConfig, tmp_path: Path, corpus: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "gone-later")
    tokenise(replace(command, data=(str(folder),)))
    more = tmp_path / "more.jsonl"
    lines = [
        *(folder / "a.jsonl").read_text().splitlines(),
        *(json.dumps({"text": f"{n} more " * 99}) for n in range(3)),
    ]
    more.write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match=r"was made of .*a.jsonl and 1 more"):
        tokenise(replace(command, data=(str(more),)))
    summary = tokenise(replace(command, data=(str(more),), extend=True))
    assert (summary["corpus"]["documents_duplicate"], summary["corpus"]["documents"]) == (1 + 12, 20 + 3)
    assert open_dataset(command.out)[len(open_dataset(command.out)) - 1].source.startswith("more.jsonl:15")


def test_changed_and_shrunk_text_is_refused_by_name(command: TokeniseConfig, tmp_path: Path, corpus: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "changing")
    command = replace(command, data=(str(folder),))
    tokenise(command)
    lines = (folder / "b.jsonl").read_text().splitlines(keepends=True)
    (folder / "b.jsonl").write_text("".join(lines[:-2]))
    with pytest.raises(UsageError, match=r"b.jsonl: it has 7 documents, but 9 were tokenized: it shrank"):
        tokenise(command)
    (folder / "b.jsonl").write_text("".join([json.dumps({"text": "other"}) + "\n", *lines[1:]]))
    with pytest.raises(UsageError, match=r"b.jsonl: its first 9 documents are not the ones that were tokenized"):
        tokenise(command)
    (folder / "b.jsonl").write_text("".join(lines))
    assert tokenise(command)["shards"] == 0


def test_other_rules_are_refused_by_name(command: TokeniseConfig, tiny_teacher: Path, tmp_path: Path) -> None:
    tokenise(command)
    with pytest.raises(ConfigurationDiffers, match=r"held out 0, duplicates .* on disk, .* held out 0\.5"):
        tokenise(replace(command, held_out=0.5))
    with pytest.raises(ConfigurationDiffers, match=r"capture\.max_length: 64 on disk, 32 asked"):
        tokenise(replace(command, max_length=32))
    other = other_tokenizer(tiny_teacher, tmp_path)
    with pytest.raises(ConfigurationDiffers, match=r"tokenizer.hash: \S+ on disk"):
        tokenise(replace(command, teacher=str(other)))


def other_tokenizer(teacher: Path, folder: Path) -> Path:
    """The teacher with a word more in its tokenizer."""
    from transformers import AutoTokenizer

    other = shutil.copytree(teacher, folder / "other" / teacher.name)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other)
    return other


def test_capture_has_the_identity_of_one_from_text(command: TokeniseConfig, tiny_teacher: Path, tmp_path: Path) -> None:
    tokenise(command)
    config = fitted(GenerateConfig(teacher=command.teacher, data=(command.out,), out=str(tmp_path / "capture")))
    (job,) = prepare(config)
    assert isinstance(job.corpus, StoredCorpus)
    from_text = GenerateConfig(
        teacher=command.teacher, data=command.data, out=str(tmp_path / "capture"), max_length=MAX_LENGTH
    )
    (expected,) = prepare(from_text)
    assert job.info.corpus == expected.info.corpus.model_copy(update={"description": job.info.corpus.description})
    assert job.info.capture == expected.info.capture
    assert job.part_tokens(0) == expected.part_tokens(0)
    assert [job.corpus[at].source for at in (0, 9)] == [expected.corpus[at].source for at in (0, 9)]


def test_captured_cells_and_rows_are_those_of_a_capture_from_text(
    command: TokeniseConfig, tmp_path: Path, short_corpus: Path
) -> None:
    command = replace(command, data=(str(short_corpus),), tokens_per_shard=500)
    tokenise(command)
    capture = GenerateConfig(
        teacher=command.teacher,
        data=command.data,
        out=str(tmp_path / "from-text"),
        max_length=MAX_LENGTH,
        top_k=8,
        hidden_states="attention",
        samples_per_shard=5,
        capture_backend="transformers",
    )
    generate(capture)
    for rank in (0, 1):
        generate(replace(capture, data=(command.out,), out=str(tmp_path / "from-tokens"), rank=rank, world_size=2))
    made = {path.name for path in (tmp_path / "from-text").glob("shards/*.arrow")}
    assert len(made) > 4
    for name in made:
        one, other = (
            pa.ipc.open_file(tmp_path / out / "shards" / name).read_all() for out in ("from-text", "from-tokens")
        )
        assert one.equals(other)
    assert generate(replace(capture, data=(command.out,)))["shards"] == 0


def test_plan_counts_from_manifests_alone(command: TokeniseConfig, tmp_path: Path) -> None:
    summary = tokenise(command)
    for path in Path(command.out).glob("shards/*.arrow"):
        path.unlink()
    out = str(tmp_path / "planned")
    planned = plan(PlanConfig(teacher=command.teacher, data=(command.out,), out=out))[out]
    assert (planned["tokens"], planned["samples"]) == (summary["tokens"], summary["samples"])


def test_capture_of_tokens_refuses_what_does_not_fit(
    command: TokeniseConfig, tiny_teacher: Path, tmp_path: Path, corpus: Path
) -> None:
    tokenise(command)
    asked = GenerateConfig(teacher=command.teacher, data=(command.out,), out=str(tmp_path / "capture"))
    with pytest.raises(UsageError, match=r"tokenized with the tokenizer of tiny-qwen2"):
        prepare(fitted(replace(asked, teacher=str(other_tokenizer(tiny_teacher, tmp_path)))))
    with pytest.raises(UsageError, match=r"--held-out: .*tokenized already"):
        fitted(replace(asked, held_out=0.1))
    with pytest.raises(UsageError, match=r"--max-length 128: the samples .* have up to 64 tokens"):
        fitted(replace(asked, max_length=128))
    with pytest.raises(UsageError, match="is not mixed with text"):
        fitted(replace(asked, data=(command.out, str(corpus))))


def test_nothing_heavy_is_imported(command: TokeniseConfig) -> None:
    code = (
        "import sys\nfrom arwkv_producer.tokens import workers\nassert 'torch' not in sys.modules\n"
        "from arwkv_producer.run import tokenise\nassert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_process_is_told_to_wait(command: TokeniseConfig) -> None:
    with (
        closing(Journal(journal_path(command.out), "any rules")),
        pytest.raises(TryAgain, match="another process makes this"),
    ):
        tokenise(command)


def test_text_without_tokens_makes_no_dataset(command: TokeniseConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UsageError, match="no text in 1 sources"):
        tokenise(replace(command, data=(str(tmp_path / "empty.jsonl"),)))
    assert not (tmp_path / "tokens" / "dataset.json").exists()
