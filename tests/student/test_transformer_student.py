"""Preset `transformer`: a plain causal language model as the student."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teacher_shards import documents, make_shards
from tiny_bases import COMMON, FAMILIES, tiny_base
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from arwkv_store.errors import UsageError
from arwkv_student.cli import main
from arwkv_student.model.transformer_student import load_transformer
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from student_faults import swap_two_tokens, train_until

TOKENS = torch.arange(40).view(2, 20) * 7 % 500
STEPS = 8


@pytest.fixture(scope="module")
def small(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another family than the teacher, and of another width and depth."""
    folder = tmp_path_factory.mktemp("small") / "qwen3-moe"
    return tiny_base("qwen3_moe", tiny_teacher, folder, hidden_size=32, num_hidden_layers=1)


def settings(shards: Path, base: Path, out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),),
        base=str(base),
        out=out,
        preset="transformer",
        steps=STEPS,
        batch_size=4,
        distill_lr=1e-2,
        dtype="fp32",
        log_every=1,
        save_every=2,
        workers=0,
        **more,
    )


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def finished(tiny_shards: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "auto"
    train(settings(tiny_shards, small, out, eval_shards=str(tiny_shards)))
    return out


def test_distill_alone_runs_and_leaves_an_ordinary_checkpoint(finished: Path, small: Path) -> None:
    assert len(losses(finished)) == STEPS
    assert losses(finished)[-1] < 0.9 * losses(finished)[0]
    assert not (finished / "align").exists()
    config = json.loads((finished / "config.json").read_text())
    before = json.loads((small / "config.json").read_text())
    assert {name: config[name] for name in ("model_type", "architectures")} == {
        name: before[name] for name in ("model_type", "architectures")
    }
    weights = load_file(finished / "model.safetensors")
    assert weights.keys() == load_file(small / "model.safetensors").keys()
    model = AutoModelForCausalLM.from_pretrained(finished).eval()
    given = model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert given.shape == (2, 24)
    assert len(AutoTokenizer.from_pretrained(finished)) == 500


def test_interrupted_run_continues_bit_for_bit(finished: Path, tiny_shards: Path, small: Path, tmp_path: Path) -> None:
    asked = settings(tiny_shards, small, tmp_path / "run")
    train_until(asked, 5)
    train(asked)
    assert losses(tmp_path / "run") == losses(finished)
    whole, continued = (load_file(run / "model.safetensors") for run in (finished, tmp_path / "run"))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_it_is_evaluated_generates_and_starts_further_runs(
    finished: Path, tiny_shards: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for model in (["--model", str(finished)], ["--base", str(small), "--preset", "transformer"]):
        with pytest.raises(SystemExit, match="0"):
            main(["eval", *model, "--shards", str(tiny_shards), "--json", "--dtype", "fp32"])
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["kl"] < figures[1]["kl"]
    with pytest.raises(SystemExit, match="0"):
        main(["generate", "--model", str(finished), "--prompt", "def", "--max-new-tokens", "3", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] <= 3
    data = tmp_path / "chat.jsonl"
    data.write_text(json.dumps({"prompt": "def f", "completion": "(x): return x"}) + "\n")
    tuned = {"stage": "sft", "start_from": str(finished), "data": str(data), "out": tmp_path / "sft", "steps": 2}
    train(TrainSettings(**tuned, batch_size=1, workers=0, dtype="fp32", packing=True))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft").config.model_type == "qwen3_moe"


def test_packed_samples_have_the_loss_of_separate_ones(tiny_shards: Path, small: Path, tmp_path: Path) -> None:
    for name, packing in (("padded", False), ("packed", True)):
        train(replace(settings(tiny_shards, small, tmp_path / name), steps=2, packing=packing))
    torch.testing.assert_close(losses(tmp_path / "packed"), losses(tmp_path / "padded"), rtol=1e-4, atol=1e-5)


def test_tokens_added_behind_the_shards_ids_are_named_and_others_refused(
    finished: Path, tiny_shards: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "base")
    train(settings(tiny_shards, tmp_path / "base", tmp_path / "run"))
    assert "2 tokens beyond the ids in" in (said := capsys.readouterr().err)
    assert "(<think>, </think>); they are not trained" in said
    assert losses(tmp_path / "run") == losses(finished)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run")) == 502
    swap_two_tokens(tmp_path / "base")
    with pytest.raises(UsageError, match="is not the shards'"):
        train(settings(tiny_shards, tmp_path / "base", tmp_path / "other"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"stage": "align"}, "--stage align: no layer of the student mixes time .--preset transformer"),
        ({"gate": "low-rank"}, "--gate: a student of preset transformer has no time mixer"),
        ({"trained": "time-mix"}, "--trained time-mix: no parameter of the student is time_mix"),
    ],
)
def test_what_needs_time_mixers_is_refused_by_name(
    asked: dict[str, Any], message: str, tiny_shards: Path, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        train(settings(tiny_shards, small, tmp_path / "run", **asked))


def test_presets_and_starting_students_that_do_not_go_together_are_refused(
    finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    asked = settings(tiny_shards, tiny_teacher, tmp_path / "run", start_from=str(finished))
    with pytest.raises(UsageError, match="keeps its attention"):
        train(replace(asked, preset="arwkv"))
    train(replace(asked, preset=None, steps=1))
    assert AutoConfig.from_pretrained(tmp_path / "run").model_type == "qwen3_moe"


HEADS = {
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "phi": {},
}


@pytest.mark.parametrize("model_type", [*HEADS, *FAMILIES])
def test_the_loss_reads_the_models_own_logits(model_type: str, tmp_path: Path) -> None:
    """Scaled logits and heads with a bias among them."""
    own = HEADS.get(model_type, FAMILIES.get(model_type, {}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **COMMON | {"pad_token_id": 0} | own)
    ).save_pretrained(tmp_path)
    model, found = load_transformer(tmp_path).eval(), []

    def loss(hidden_BTC: Tensor, weight_VC: Tensor) -> Tensor:
        found.append(hidden_BTC @ weight_VC.T)
        return found[0].sum()

    assert model(input_ids=TOKENS, head_loss=loss).loss.requires_grad
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(TOKENS).logits
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


def test_a_soft_cap_on_the_logits_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gemma2", **COMMON | {"head_dim": 16, "final_logit_softcapping": 0.5})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="the logits of gemma2 are no linear function"):
        load_transformer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UsageError, match="no causal language model for 'vit'"):
        load_transformer(tmp_path)


@pytest.mark.slow
def test_a_small_student_learns_from_a_large_teacher_of_another_vocabulary_padding(
    tiny_corpus: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    teacher = tiny_base("llama", tiny_teacher, tmp_path / "teacher", hidden_size=128, num_hidden_layers=4)
    shards = make_shards(teacher, documents(tiny_corpus), tmp_path / "shards", max_length=48, limit=16, hidden="none")
    base = tiny_base("mistral", tiny_teacher, tmp_path / "base", vocab_size=512)
    train(replace(settings(shards, base, tmp_path / "run"), steps=40))
    assert losses(tmp_path / "run")[-1] < 0.7 * losses(tmp_path / "run")[0]
