"""Layers chosen by data: what a try measures, the file, and what a run makes of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arwkv_store.commands.progress import Progress
from arwkv_store.errors import ConfigurationDiffers, NotFound, UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config, untrained_student
from arwkv_student.data.shards import open_shards
from arwkv_student.evaluation.fidelity import evaluate
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.selection.scores import KeptLayers
from arwkv_student.selection.select import evenly_spaced, select
from arwkv_student.selection.settings import SelectSettings
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train


def asked(base: Path, shards: Path, out: Path, **more: Any) -> SelectSettings:
    common: dict[str, Any] = {
        "keep": 1,
        "head_dim": 16,
        "calibration_tokens": 300,
        "score_tokens": 200,
        "dtype": "fp32",
    }
    return SelectSettings(base=str(base), shards=str(shards), out=out, **common | more)


@pytest.fixture
def tries(tiny_teacher: Path, tiny_shards: Path) -> Iterator[KeptLayers]:
    base = open_base(str(tiny_teacher))
    torch.manual_seed(0)
    model = untrained_student(base, TrainSettings(head_dim=16), 0).eval()
    with torch.no_grad():
        for block in model.model.layers:
            block.time_mix.output.weight.normal_(std=0.1)
    with Progress("select", None) as progress:
        dataset = open_shards(str(tiny_shards), ["logits", "token_stats"])
        yield KeptLayers(model, BaseAttention(base, [0, 1]), dataset, 200, 4, False, progress)


def hybrid_kl(model: ArwkvForCausalLM, base: Path, shards: Path, mixing: list[int], samples: int) -> float:
    """Of a model that is built with attention in the other layers."""
    opened = open_base(str(base))
    hybrid = convert(opened, student_config(opened, "arwkv", {"head_dim": 16}, mixing)).model.eval()
    own = {name: weight for name, weight in model.state_dict().items() if name in hybrid.state_dict()}
    hybrid.load_state_dict(own, strict=False)
    dataset = open_shards(str(shards), ["logits", "token_stats"])
    return evaluate(hybrid, dataset, batch_size=4, samples=samples)["kl"]


def test_try_measures_the_hybrid_that_keeps_the_layer(tries: KeptLayers, tiny_teacher: Path, tiny_shards: Path) -> None:
    built = hybrid_kl(tries.model, tiny_teacher, tiny_shards, [0], len(tries.lengths))
    assert tries.kl({1}) == pytest.approx(built, abs=1e-4)
    assert tries.kl_with_each([0]).keys() == {1}
    assert tries.kl_without_each()[0] == pytest.approx(built, abs=1e-4)


def test_student_whose_layers_all_attend_is_its_teacher(tries: KeptLayers) -> None:
    assert abs(tries.kl({0, 1})) < 1e-4
    assert tries.kl(()) > 0.01
    assert tries.tokens_read == 2 * sum(tries.lengths)


@pytest.mark.parametrize("score", ["error", "kl", "greedy", "removal"])
def test_file_says_what_was_chosen_and_what_it_cost(
    score: Any, tiny_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    found = select(asked(tiny_teacher, tiny_shards, tmp_path / "layers.json", score=score))
    assert json.loads((tmp_path / "layers.json").read_text()) == json.loads(json.dumps(found))
    assert sorted(found["layers"] + found["kept"]) == [0, 1]
    assert set(found["kl"]) == {"none", "evenly_spaced", "kept"}
    if score in ("kl", "greedy"):
        scores = {layer: -kl for layer, kl in found["kl_with_layer"].items()}
    else:
        scores = found["relative_errors" if score == "error" else "kl_without_layer"]
    assert found["kept"] == [max(scores, key=scores.__getitem__)]
    assert found["tokens"]["fit"] >= 300
    assert found["tokens"]["comparisons"] >= 200 * (3 if score == "error" else 5)


def test_even_spacing_takes_the_middle_of_each_block() -> None:
    assert evenly_spaced(3, 9) == [1, 4, 7]
    assert evenly_spaced(6, 30) == [2, 7, 12, 17, 22, 27]


def test_run_takes_its_layers_from_the_file_and_compares_them_not_the_place(
    tiny_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    kept = select(asked(tiny_teacher, tiny_shards, tmp_path / "layers.json"))["kept"]
    settings = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "run", steps=1, batch_size=4, head_dim=16,
        layers=tmp_path / "layers.json", dtype="fp32", workers=0, stage="distill",
    )  # fmt: skip
    train(settings)
    kinds = json.loads((tmp_path / "run" / "config.json").read_text())["layer_types"]
    assert [layer for layer, kind in enumerate(kinds) if kind != "linear_attention"] == kept
    moved = (tmp_path / "layers.json").rename(tmp_path / "moved.json")
    train(replace(settings, layers=moved))
    moved.write_text(json.dumps(json.loads(moved.read_text()) | {"layers": kept}))
    with pytest.raises(ConfigurationDiffers, match="layers:"):
        train(replace(settings, layers=moved))


def test_shards_without_logits_choose_by_error_alone(
    tiny_teacher: Path, tiny_shards: Path, tmp_path: Path, tiny_align_shards: Path
) -> None:
    out = tmp_path / "layers.json"
    with pytest.raises(UsageError, match="holds no logits, with which --score kl compares"):
        select(asked(tiny_teacher, tiny_align_shards, out))
    assert select(asked(tiny_teacher, tiny_align_shards, out, score="error"))["kl"] == {}
    apart = select(asked(tiny_teacher, tiny_align_shards, out, score_shards=str(tiny_shards)))
    assert set(apart["kl_with_layer"]) == {0, 1}


@pytest.fixture(scope="module")
def tiny_align_shards(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boundaries and no logits."""
    from teacher_shards import documents, make_shards

    out = tmp_path_factory.mktemp("shards") / "align"
    return make_shards(
        tiny_teacher, documents(tiny_corpus), out, max_length=48, limit=12, hidden="boundaries", logits="none"
    )


def test_fit_from_tokens_alone_chooses_alike(
    tiny_teacher: Path, tiny_shards: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from teacher_shards import documents, make_shards

    texts = documents(tiny_corpus)
    logits = make_shards(tiny_teacher, texts, tmp_path / "logits", max_length=48, limit=24, hidden="none")
    stored, rebuilt = (select(asked(tiny_teacher, shards, tmp_path / "l.json")) for shards in (tiny_shards, logits))
    assert rebuilt["kept"] == stored["kept"]
    assert rebuilt["relative_errors"] == pytest.approx(stored["relative_errors"], abs=0.02)


def test_what_cannot_be_chosen_is_refused(tiny_teacher: Path, tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "layers.json"
    with pytest.raises(UsageError, match=r"--keep 2: base .* has 2 layers; keep fewer"):
        select(asked(tiny_teacher, tiny_shards, out, keep=2))
    with pytest.raises(UsageError, match="--keep 0: give at least 1"):
        asked(tiny_teacher, tiny_shards, out, keep=0)
    with pytest.raises(UsageError, match="leave it out"):
        asked(tiny_teacher, tiny_shards, out, layers=(0,))
    with pytest.raises(UsageError, match="give them to student train"):
        asked(tiny_teacher, tiny_shards, out, kept_window=8)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, NotFound, "no such file; write it with student select"),
        ('{"layers": "all"}', UsageError, "no list of layer numbers under 'layers'"),
        ('{"layers": [0], "num_hidden_layers": 30}', UsageError, "chosen for a base of 30 layers, and .* has 2"),
    ],
)
def test_file_of_layers_that_does_not_fit_is_refused(
    text: str | None, error: type[Exception], message: str, tiny_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    file = tmp_path / "layers.json"
    if text is not None:
        file.write_text(text)
    settings = TrainSettings(shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "run", layers=file)
    with pytest.raises(error, match=message):
        train(settings)
