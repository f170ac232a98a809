"""Several shard sets in one run: weighted, resumable, each read by the stages that it serves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teacher_shards import documents, make_shards
from transformers import Qwen2Config, Qwen2ForCausalLM

from arwkv_store import create_dataset, open_dataset
from arwkv_store.errors import UsageError
from arwkv_student import cli
from arwkv_student.model.loading import load_student
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train


@pytest.fixture(scope="module")
def wide_teacher(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider, deeper, and padded to other rows than the student's base; the same tokenizer."""
    folder = tmp_path_factory.mktemp("wide") / "wide-qwen2"
    shutil.copytree(tiny_teacher, folder)
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=576,
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.15,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_shards(wide_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The wide teacher's logits, and its final hidden states."""
    folder, texts = tmp_path_factory.mktemp("wide-shards"), documents(tiny_corpus)
    return {
        "logits": str(make_shards(wide_teacher, texts, folder / "logits", max_length=32, limit=12, hidden="none")),
        "final": str(
            make_shards(wide_teacher, texts, folder / "final", max_length=32, limit=12, hidden="final", logits="none")
        ),
    }


def asked(shards: tuple[str, ...], base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=shards, base=str(base), out=out, head_dim=16, steps=4, batch_size=6, distill_lr=3e-3, align_lr=3e-3,
        dtype="fp32", log_every=1, save_every=2, workers=0,
    )  # fmt: skip


def losses(run: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        stage: [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]
        for stage in ("align", "distill")
    }


def test_student_learns_from_a_wider_teachers_logits_and_final_states(
    wide_teacher: Path, wide_shards: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    """Widths 96 and 64, heads of 576 and 544 rows, one tokenizer of 500."""
    first = {}
    for kind, head in (("logits", None), ("final", str(wide_teacher))):
        out = tmp_path / kind
        train(replace(asked((wide_shards[kind],), tiny_teacher, out), teacher_head=head))
        first[kind] = losses(out)["distill"][0]
        assert losses(out)["distill"][-1] < first[kind]
        assert load_student(out).lm_head.weight.shape == (544, 64)
    assert first["logits"] < first["final"]  # the tail as one outcome hides some of the divergence
    teacher = Qwen2ForCausalLM.from_pretrained(wide_teacher).eval()
    with torch.no_grad():
        assert teacher(torch.arange(4)[None]).logits.shape[-1] == 576
    with pytest.raises(UsageError, match=r"head of .* is 64 wide, the final hidden states 96"):
        train(asked((wide_shards["final"],), tiny_teacher, tmp_path / "headless"))


def test_from_32b_in_one_command(
    wide_shards: dict[str, str], tiny_boundary_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Stage 1 from shards of the student's own base, stage 2 from those of the larger teacher."""
    own = open_dataset(tiny_boundary_shards, columns=["hidden"])
    capture = own.info.capture.model_copy(update={"logits": "none", "logits_codec": "none", "top_k": None})
    out = tmp_path / "own"
    create_dataset(out, own.info.model_copy(update={"capture": capture})).write_shard(0, own[:4])
    settings = replace(
        asked((str(out), wide_shards["logits"]), tiny_teacher, tmp_path / "run"), preset="arwkv-from-32b"
    )
    assert list(train(settings)["stages"]) == ["align", "distill"]
    alone = replace(
        asked((wide_shards["logits"],), tiny_teacher, tmp_path / "alone"),
        preset="arwkv-from-32b",
        start_from=str(tmp_path / "run" / "align"),
    )
    train(alone)
    assert losses(tmp_path / "alone")["distill"] == losses(tmp_path / "run")["distill"]


def test_weighted_sets_continue_bit_for_bit(
    tiny_shards: Path, wide_shards: dict[str, str], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arwkv_student.training.run_log import RunLog

    settings = replace(
        asked((str(tiny_shards), wide_shards["logits"]), tiny_teacher, tmp_path / "whole"),
        stage="distill",
        shard_weights=(0.7, 0.3),
        context=(16, 40),
        packing=True,
    )
    train(settings)
    original = RunLog.on_step_end

    class Killed(Exception):
        pass

    def killed(self: RunLog, args: object, state: object, control: object, **more: object) -> None:
        original(self, args, state, control, **more)
        if state.global_step == 3:  # type: ignore[attr-defined] # transformers' TrainerState
            raise Killed

    monkeypatch.setattr(RunLog, "on_step_end", killed)
    with pytest.raises(Killed):
        train(replace(settings, out=tmp_path / "run"))
    monkeypatch.undo()
    train(replace(settings, out=tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    whole, continued = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_flags_name_several_sets(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text(
        f'shards = ["{tiny_shards}", "{tiny_shards}"]\nshard-weights = [0.5, 0.5]\nbase = "{tiny_teacher}"\n'
        'steps = 1\nhead-dim = 16\nworkers = 0\nbatch-size = 2\nstage = "distill"\n'
    )
    typed = [
        *("--shards", str(tiny_shards), "--shards", str(tiny_shards), "--shard-weights", "0.5", "0.5"),
        *("--base", str(tiny_teacher), "--steps", "1", "--head-dim", "16", "--workers", "0"),
        *("--batch-size", "2", "--stage", "distill"),
    ]
    for name, words in (("file", ["--config", str(file)]), ("typed", typed)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *words, "--out", str(tmp_path / name)])
        assert ended.value.code == 0
    assert losses(tmp_path / "file") == losses(tmp_path / "typed")


def test_sets_that_do_not_go_together_are_refused(
    tiny_shards: Path, wide_shards: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    both = (str(tiny_shards), wide_shards["logits"])
    with pytest.raises(UsageError, match="a positive weight for each of the 2 --shards"):
        train(replace(asked(both, tiny_teacher, tmp_path / "run"), shard_weights=(1.0,)))
    with pytest.raises(UsageError, match="stage align reads nothing from it"):
        train(replace(asked(both, tiny_teacher, tmp_path / "run"), stage="align"))
    logits = asked((wide_shards["logits"],), tiny_teacher, tmp_path / "run")
    with pytest.raises(UsageError, match=r"--align-tokens 100: --stage auto runs .* not align; run --stage align"):
        train(replace(logits, stage="auto", align_tokens=100))
    assert not (tmp_path / "run").exists()


def with_other_weights(teacher: Path, folder: Path) -> Path:
    """A checkpoint that differs from `teacher` in its weights alone."""
    shutil.copytree(teacher, folder)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0] += 1.0
    model.save_pretrained(folder)
    return folder


def retold(shards: Path, out: Path, **teacher: str | None) -> str:
    """The same samples, of a teacher that is recorded otherwise."""
    dataset = open_dataset(shards)
    info = dataset.info.model_copy(update={"teacher": dataset.info.teacher.model_copy(update=teacher)})
    writer = create_dataset(out, info)
    for part in writer.missing_parts():
        writer.write_shard(part, dataset[4 * part : 4 * part + 4])
    return str(out)


@pytest.mark.parametrize("stage", ["align", "distill"])
def test_hidden_states_of_another_checkpoint_are_refused(
    stage: str, tiny_shards: Path, tiny_final_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The same widths, depth and tokenizer, and other weights."""
    other = str(with_other_weights(tiny_teacher, tmp_path / "other"))
    shards = str(tiny_shards if stage == "align" else tiny_final_shards)
    settings = replace(asked((shards,), tiny_teacher, tmp_path / "run"), stage=stage, steps=1)
    with pytest.raises(
        UsageError, match=r"--base .*/other: weights \w+, but the hidden states in .* are those of tiny"
    ):
        train(replace(settings, base=other))
    if stage == "distill":
        with pytest.raises(UsageError, match=r"--teacher-head .*/other: weights "):
            train(replace(settings, teacher_head=other))
        train(replace(settings, base=other, teacher_head=str(tiny_teacher)))
    assert train(replace(settings, out=tmp_path / "own"))["stages"][stage]["steps"] == 1


def test_changed_configuration_of_the_same_weights_is_said(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As YaRN in config.json, which moves the hidden states; the first release hashed the weights alone."""
    changed = tmp_path / "changed"
    shutil.copytree(tiny_teacher, changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    said = "changed: its config.json differs from that of the capture"
    settings = replace(asked((str(tiny_shards),), tiny_teacher, tmp_path / "own"), stage="align", steps=1)
    train(settings)
    assert "config.json" not in capfd.readouterr().err
    train(replace(settings, base=str(changed), out=tmp_path / "other"))
    assert said in capfd.readouterr().err
    weights = str(open_dataset(tiny_shards).info.teacher.weights_hash).partition("-")[0]
    older = retold(tiny_shards, tmp_path / "older", weights_hash=weights)
    train(replace(settings, shards=(older,), base=str(changed), out=tmp_path / "unsaid"))
    assert said not in capfd.readouterr().err


def test_teacher_from_the_hub_is_compared_by_its_revision(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "models--Qwen--tiny" / "snapshots" / "c0ffee"
    shutil.copytree(tiny_teacher, snapshot)
    told = {"model": "Qwen/tiny", "weights_hash": None}
    same = retold(tiny_shards, tmp_path / "same", **told, revision="c0ffee")
    newer = retold(tiny_shards, tmp_path / "newer", **told, revision="c0ffef")
    settings = replace(asked((same,), snapshot, tmp_path / "run"), stage="align", steps=1)
    train(settings)
    assert "cannot be compared" not in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"revision c0ffee, but .* are those of Qwen/tiny@c0ffef; name that"):
        train(replace(settings, shards=(newer,)))
    train(replace(settings, base=str(tiny_teacher), out=tmp_path / "folder"))
    assert "tiny-qwen2: cannot be compared with Qwen/tiny@c0ffee" in capfd.readouterr().err
