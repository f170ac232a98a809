"""Captures of other tools become datasets, and datasets become theirs; every value is compared."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from arwkv_store import Sample, cli, open_dataset
from arwkv_store.format.vocabulary import vocabulary_hash
from distillkit_files import write_capture, write_legacy_capture
from store_examples import assert_same_sample, example_dataset_info, example_samples, write_example_dataset

Row = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]
Run = Callable[..., dict[str, Any]]
V, K = 500, 24
RECOMMENDED = {
    **{"d": V, "k": K, "exact_k": 8, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]},
    **{"term_dtype": "float32", "residual_bins": [], "delta_encoding": False, "error_diffusion": False},
}
EXACT = RECOMMENDED | {"exact_k": K, "exact_dtype": "float32", "polynomial_terms": None}

RESIDUALS = RECOMMENDED | {
    **{"exact_dtype": "float16", "normalize_t": True, "polynomial_terms": [0, 1, "sqrt"]},
    "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 9, "num_elements": 11},
        {"scale_dtype": "float32", "element_bits": 1, "num_elements": 5},
    ],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a `store` command with --json; its document, or with `code` the last line of stderr."""

    def run_command(*words: object, code: int = 0) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["store", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert end.value.code == code, printed.err
        return json.loads(printed.out) if code == 0 else {"error": printed.err.strip().splitlines()[-1]}

    return run_command


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's config.json and tokenizer.json, of which nothing else is needed."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("teacher")
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0")).save(str(folder / "tokenizer.json"))
    config = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def smooth_rows(n: int = 7, noise: float = 0.0) -> list[Row]:
    """Log-probabilities that DistillKit's terms fit from the eighth on, but for a noise that changes its sign."""
    t = np.arange(K - 8)
    rows: list[Row] = []
    for number, (tokens, ids, _) in enumerate(capture_rows(n)):
        first = -2.5 - 0.1 * np.arange(8) - 0.01 * number
        rest = first[-1] - 0.4 - 0.15 * np.sqrt(t) - 0.15 * t + noise * np.where(t % 2, -1, 1)
        rows.append((tokens, ids, np.broadcast_to(np.float32([*first, *rest]), ids.shape)))
    return rows


def capture_rows(n: int = 7, *, positions_less: int = 1) -> list[Row]:
    """Top-k of a random teacher, for one position less than tokens, as DistillKit's capture keeps them."""
    rows: list[Row] = []
    for number in range(n):
        rng = np.random.default_rng(number)
        T = int(rng.integers(9, 20))
        tokens = rng.integers(0, V, T).astype(np.int32)
        logits = np.sort(rng.standard_normal((T - positions_less, V)) * 2.5)[:, ::-1]
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        ids = np.stack([rng.permutation(V)[:K] for _ in logits])
        rows.append((tokens, ids, logprobs[:, :K].astype(np.float32)))
    return rows


def assert_imported(read: Sample, row: Row, nats: float) -> None:
    tokens, ids, values = row
    P = len(ids)
    assert read.tokens.tolist() == tokens.tolist()
    assert read.logits is not None
    assert read.logits.counts.tolist() == [K] * P + [0] * (len(tokens) - P)
    found = np.zeros((P, V))
    np.put_along_axis(found, read.logits.ids.reshape(P, K), read.logits.logprobs.reshape(P, K), 1)
    np.testing.assert_allclose(np.take_along_axis(found, ids, 1), values, rtol=0, atol=nats)
    assert (np.diff(read.logits.logprobs.reshape(P, K)) <= 0).all()
    mass = np.exp(read.logits.logprobs.reshape(P, K).astype(np.float64)).sum(1)
    np.testing.assert_allclose(np.exp(read.logits.tail_logprob[:P]), 1 - mass, atol=1e-6)
    assert (read.entropy, read.true_logprob) == (None, None)


@pytest.mark.parametrize(
    ("rows", "settings", "nats"),
    [
        (smooth_rows(), RECOMMENDED, 0.01),
        (capture_rows(), EXACT, 1e-6),
        (capture_rows(), EXACT | {"delta_encoding": True}, 1e-5),
        (smooth_rows(noise=0.06), RESIDUALS, 0.03),
    ],
    ids=["recommended", "exact", "deltas", "residuals"],
)
def test_distillkit_capture_becomes_verified_shards(
    run: Run, teacher: Path, tmp_path: Path, rows: list[Row], settings: dict[str, Any], nats: float
) -> None:
    write_capture(tmp_path / "capture", rows, settings)
    words = ("import", "--from", "distillkit", tmp_path / "capture", "--teacher", teacher, "--samples-per-shard", 2)
    said = run(*words, "--out", tmp_path / "out")
    assert (said["parts"], said["samples"], said["tokens"]) == (4, 7, sum(len(row[0]) for row in rows))
    assert any("tail mass is derived" in note for note in said["notes"])
    dataset = open_dataset(tmp_path / "out")
    for read, row in zip(dataset, rows, strict=True):
        assert_imported(read, row, nats)
    info = dataset.info
    vocabulary = {f"w{i}": i for i in range(V)}
    assert (info.tokenizer.hash, info.tokenizer.vocab_size) == (vocabulary_hash(vocabulary), V)
    assert (info.capture.top_k, info.vocab_size_padded, info.teacher.model_type) == (K, 512, "qwen2")
    assert "entropy" in info.corpus.description
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    assert run("verify", tmp_path / "out", "--deep")["damaged"] == {}


def test_legacy_capture_of_logits_is_normalized_over_its_entries(run: Run, teacher: Path, tmp_path: Path) -> None:
    rows = [(tokens, ids, values + 9) for tokens, ids, values in capture_rows(3, positions_less=0)]
    for _, _, values in rows:  # the form that these settings approximate
        values[:, 16:] = values[:, 15:16] - 1.4 + 1 / np.arange(1, K - 15)
    settings = {"vocab_size": V, "k": K, "exact_k": 16, "polynomial_degree": 3}
    write_legacy_capture(tmp_path / "capture", rows, settings)
    words = ("import", "--from", "distillkit", tmp_path / "capture", "--teacher", teacher, "--out", tmp_path / "out")
    assert "--values logits" in run(*words, code=2)["error"]
    assert any("no tail mass" in note for note in run(*words, "--values", "logits")["notes"])
    for read, (_, ids, values) in zip(open_dataset(tmp_path / "out"), rows, strict=True):
        assert read.logits is not None
        found = np.zeros((len(ids), V))
        np.put_along_axis(found, read.logits.ids.reshape(-1, K), read.logits.logprobs.reshape(-1, K), 1)
        expected = values - np.log(np.exp(values).sum(1, keepdims=True))
        np.testing.assert_allclose(np.take_along_axis(found, ids, 1), expected, atol=2e-3)
        assert np.isneginf(read.logits.tail_logprob).all()


@pytest.mark.parametrize("capture", [
    {"hidden_dtype": "none"}, {"logits": "adaptive", "top_p": 0.9, "logits_codec": "compact", "hidden_dtype": "fp8"},
    {"logits": "sampled", "draws": 40, "top_k": None, "logits_codec": "sampled", "layers": ()},
    {"logits": "hybrid", "draws": 20, "logits_codec": "hybrid", "hidden_states": "boundaries"},
    {"logits": "none", "hidden_states": "final", "layers": (0,)}])  # fmt: skip
def test_parquet_of_any_capture_comes_back_equal(run: Run, tmp_path: Path, capture: dict[str, Any]) -> None:
    write_example_dataset(tmp_path / "data", info=example_dataset_info(**capture))
    (tmp_path / "data/tokenizer.json").write_text("{}")
    run("export", tmp_path / "data", "--out", tmp_path / "plain")
    run("import", tmp_path / "plain", "--out", tmp_path / "back", "--samples-per-shard", 3)
    back, written = open_dataset(tmp_path / "back"), open_dataset(tmp_path / "data")
    for read, sample in zip(back, written, strict=True):
        assert_same_sample(read, sample)
    assert (back.info.teacher, back.info.tokenizer) == (written.info.teacher, written.info.tokenizer)
    assert (tmp_path / "back/tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("capture", [{}, {"logits": "adaptive", "top_p": 0.9}])
def test_export_to_distillkit_and_back_keeps_every_entry(run: Run, tmp_path: Path, capture: dict[str, Any]) -> None:
    written = write_example_dataset(tmp_path / "data", info=example_dataset_info(**capture))
    files = run("export", tmp_path / "data", "--to", "distillkit", "--out", tmp_path / "kit")["files"]
    assert [Path(file).name for file in files] == ["data_0.parquet", "data_1.parquet", "data_2.parquet",
                                                   "compression_config.yaml"]  # fmt: skip
    run("import", "--from", "distillkit", tmp_path / "kit", "--out", tmp_path / "back")
    for read, sample in zip(open_dataset(tmp_path / "back"), written, strict=True):
        assert read.logits is not None
        assert sample.logits is not None
        assert read.logits.counts.tolist() == sample.logits.counts.tolist()
        np.testing.assert_array_equal(read.logits.ids, sample.logits.ids)
        np.testing.assert_allclose(read.logits.logprobs, sample.logits.logprobs, rtol=1e-6)
        np.testing.assert_allclose(np.exp(read.logits.tail_logprob), np.exp(sample.logits.tail_logprob), atol=1e-6)
        assert read.loss_mask.tolist() == sample.loss_mask.tolist()


def plain_table(samples: list[Sample], shift: int = 0) -> pa.Table:
    """Lists under other names, as people write them; with `shift` 1 entry t is the distribution of token t."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "top_ids": [], "top_logprobs": []}
    for sample in samples:
        assert sample.logits is not None
        T, k = len(sample.tokens), int(sample.logits.counts[0])
        ids, logprobs = sample.logits.ids.reshape(T, k).tolist(), sample.logits.logprobs.reshape(T, k).tolist()
        columns["input_ids"].append(sample.tokens.tolist())
        columns["labels"].append(np.where(sample.loss_mask, sample.tokens, -100).tolist())
        columns["top_ids"].append([[]] * shift + ids[: T - shift])
        columns["top_logprobs"].append([[]] * shift + logprobs[: T - shift])
    return pa.table(columns)


def knowing_samples(n: int) -> list[Sample]:
    """Example samples whose likeliest entry is the next token, as a real teacher's often is."""
    samples = example_samples(n, info=example_dataset_info(layers=()))
    for sample in samples:
        assert sample.logits is not None
        ids = sample.logits.ids.reshape(len(sample.tokens), -1)
        clash = ids[:-1] == sample.tokens[1:, None]
        ids[:-1][clash] = np.broadcast_to(ids[:-1, :1], clash.shape)[clash]
        ids[:-1, 0] = sample.tokens[1:]
    return samples


def test_plain_lists_under_any_name_and_position_rule(run: Run, teacher: Path, tmp_path: Path) -> None:
    samples = knowing_samples(5)
    pq.write_table(plain_table(samples, shift=1), tmp_path / "lists.parquet")
    words = ("import", tmp_path / "lists.parquet", "--teacher", teacher, "--out", tmp_path / "out",
             "--column", "ids=top_ids", "logprobs=top_logprobs")  # fmt: skip
    assert "--position-rule same-token" in run(*words, code=2)["error"]
    run(*words, "--position-rule", "same-token")
    for read, sample in zip(open_dataset(tmp_path / "out"), samples, strict=True):
        assert read.logits is not None
        assert sample.logits is not None
        assert read.loss_mask.tolist() == sample.loss_mask.tolist()
        kept = int(sample.logits.counts[:-1].sum())
        np.testing.assert_array_equal(read.logits.ids, sample.logits.ids[:kept])
        np.testing.assert_allclose(read.logits.logprobs, sample.logits.logprobs[:kept], rtol=1e-6)


def test_flags_of_an_import_may_stand_in_a_file(run: Run, teacher: Path, tmp_path: Path) -> None:
    write_capture(tmp_path / "capture", capture_rows(2), RECOMMENDED)
    (tmp_path / "import.toml").write_text(f'from = "distillkit"\nteacher = "{teacher}"\nout = "{tmp_path / "out"}"\n')
    assert run("import", tmp_path / "capture", "--config", tmp_path / "import.toml")["samples"] == 2


def test_import_continues_where_it_stopped(run: Run, teacher: Path, tmp_path: Path) -> None:
    write_capture(tmp_path / "capture", capture_rows(), RECOMMENDED)
    words = ("import", "--from", "distillkit", tmp_path / "capture", "--teacher", teacher, "--out", tmp_path / "out",
             "--samples-per-shard", 2)  # fmt: skip
    run(*words)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/shards").iterdir()}
    for lost in (tmp_path / "out/shards").glob("part-000002*"):
        lost.unlink()
    said = run(*words)
    assert (said["parts_present_before"], said["parts"]) == (3, 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/shards").iterdir()} == before
    assert "samples_per_part" in run(*words[:-1], 3, code=2)["error"]


def damaged(folder: Path) -> None:
    (folder / "data_1.parquet").write_bytes((folder / "data_1.parquet").read_bytes()[:-40])


def without_settings(folder: Path) -> None:
    (folder / "compression_config.yaml").unlink()


def other_settings(folder: Path) -> None:
    path = folder / "compression_config.yaml"
    path.write_text(path.read_text().replace("k: 24", "k: 25").replace("exact_k: 8", "exact_k: 9"))


def unknown_field(folder: Path) -> None:
    (folder / "compression_config.yaml").write_text("d: 500\nk: 24\nexact_k: 8\nzeta: 1\n")


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (damaged, 3, "data_1.parquet"),
        (without_settings, 2, "--compression FILE"),
        (other_settings, 3, "the compression's settings say"),
        (unknown_field, 2, "zeta"),
    ],
)
def test_a_capture_that_cannot_be_read_is_refused_by_name(
    run: Run, teacher: Path, tmp_path: Path, spoil: Callable[[Path], None], code: int, said: str
) -> None:
    write_capture(tmp_path / "capture", capture_rows(), RECOMMENDED)
    spoil(tmp_path / "capture")
    words = ("import", "--from", "distillkit", tmp_path / "capture", "--teacher", teacher, "--out", tmp_path / "out")
    assert said in run(*words, code=code)["error"]
    assert not list(tmp_path.glob("out/shards/*.json"))


def test_what_is_missing_is_asked_for(run: Run, teacher: Path, tmp_path: Path) -> None:
    samples = example_samples(2, info=example_dataset_info(layers=()))
    pq.write_table(plain_table(samples), tmp_path / "lists.parquet")
    words = ("import", tmp_path / "lists.parquet", "--out", tmp_path / "out")
    assert "--column ids=NAME" in run(*words, "--teacher", teacher, code=2)["error"]
    named = (*words, "--column", "ids=top_ids", "logprobs=top_logprobs")
    assert "--teacher" in run(*named, code=2)["error"]
    assert "no .parquet file" in run("import", tmp_path / "nothing", "--out", tmp_path / "out", code=2)["error"]
    assert not (tmp_path / "out").exists()
