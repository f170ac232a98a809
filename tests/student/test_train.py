import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState, TrainingArguments

from api_serving import serving
from arwkv_store.errors import ConfigurationDiffers, NotFound, UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.training.parameters import parameter_groups
from arwkv_student.training.pipeline import train
from arwkv_student.training.plan import StagePlan
from arwkv_student.training.run_log import reporters
from student_faults import swap_two_tokens, train_until

STEPS = 6


def settings(shards: Path, base: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        shards=(str(shards),),
        base=str(base),
        out=out,
        head_dim=16,
        steps=STEPS,
        batch_size=4,
        align_lr=3e-3,
        distill_lr=3e-3,
        dtype="fp32",
        log_every=1,
        save_every=2,
        workers=0,
    )


def figures(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without those that time decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines]


@pytest.fixture(scope="module")
def finished(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "auto"
    train(replace(settings(tiny_shards, tiny_teacher, out), eval_shards=str(tiny_shards), eval_every=4))
    return out


def test_auto_runs_both_stages_and_both_losses_fall(finished: Path) -> None:
    for stage in ("align", "distill"):
        losses = [line["loss"] for line in figures(finished) if line["stage"] == stage and "loss" in line]
        assert len(losses) == STEPS
        assert losses[-1] < losses[0]


def test_run_holds_the_last_student_and_each_stages(finished: Path) -> None:
    last = load_file(finished / "model.safetensors")
    distilled, aligned = (load_file(finished / stage / "model.safetensors") for stage in ("distill", "align"))
    assert all(torch.equal(last[name], distilled[name]) for name in last)
    changed = [name for name in aligned if not torch.equal(aligned[name], distilled[name])]
    assert changed
    assert not [name for name in changed if ".mlp." in name]
    AutoModelForCausalLM.from_pretrained(finished)
    assert AutoTokenizer.from_pretrained(finished).vocab_size == 500


def test_whoever_loads_a_run_gets_no_token_from_a_padding_row(finished: Path) -> None:
    for folder in (finished, finished / "align", finished / "distill"):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        model.lm_head.weight.data[500:] *= 50
        prompt = torch.tensor([[5, 6, 7]])
        asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
        assert (model.generate(prompt, **asked) < 500).all()
        assert (model.generate(prompt, **asked, suppress_tokens=None)[0, 3:] >= 500).any()


def test_only_time_mixers_train_in_align(finished: Path, tiny_teacher: Path) -> None:
    aligned, teacher = (load_file(folder / "model.safetensors") for folder in (finished / "align", tiny_teacher))
    assert all(torch.equal(aligned[name], x) for name, x in teacher.items() if ".self_attn." not in name)


def test_metrics_tell_tokens_rate_errors_and_held_out_figures(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    assert first["stage"] == "align"
    assert first["step"] == 1
    assert first["tokens"] > 0
    assert first["tokens_per_s"] > 0
    assert 0 < first["relative_error_1"] <= 1.01
    held_out = [line for line in lines if "eval_kl" in line]
    assert [(line["stage"], line["step"]) for line in held_out] == [
        *(("align", 4), ("align", STEPS)),
        *(("distill", 4), ("distill", STEPS)),
    ]
    assert all(line["eval_kl"] > 0 and line["eval_perplexity_ratio"] > 0 for line in held_out)
    assert list((finished / "tensorboard" / "align").glob("events*"))


def test_finished_run_is_not_run_again(finished: Path, tiny_shards: Path, tiny_teacher: Path) -> None:
    before = (finished / "metrics.jsonl").read_text()
    result = train(replace(settings(tiny_shards, tiny_teacher, finished), eval_shards=str(tiny_shards)))
    assert (finished / "metrics.jsonl").read_text() == before
    assert set(result["stages"]) == {"align", "distill"}


def test_changed_configuration_is_refused_by_field(finished: Path, tiny_shards: Path, tiny_teacher: Path) -> None:
    changed = replace(settings(tiny_shards, tiny_teacher, finished), align_lr=1e-2, batch_size=2)
    with pytest.raises(
        ConfigurationDiffers, match=r"align_lr: 0\.003 there, 0\.01 asked; samples_per_step: 4 there, 2 asked"
    ):
        train(changed)


def test_changed_base_or_start_is_refused_and_a_moved_one_is_not(
    finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """In stage 2 from logits, where the shards know nothing of the base's weights."""
    for source in (tiny_teacher, finished / "align", finished / "distill"):
        shutil.copytree(source, tmp_path / source.name)
    base = tmp_path / tiny_teacher.name
    asked = replace(
        settings(tiny_shards, tiny_teacher, tmp_path / "run"),
        stage="distill", steps=1, start_from=str(finished / "align"),
    )  # fmt: skip
    train(asked)
    train(replace(asked, base=str(base), start_from=str(tmp_path / "align")))
    with pytest.raises(ConfigurationDiffers, match=r"start: \"[\w-]+\" there, \"[\w-]+\" asked; choose"):
        train(replace(asked, start_from=str(tmp_path / "distill")))
    with pytest.raises(ConfigurationDiffers, match=r"start: \"[\w-]+\" there, null asked; choose"):
        train(replace(asked, start_from=None))
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["lm_head.weight"] + 1}, base / "model.safetensors")
    with pytest.raises(ConfigurationDiffers, match=r"base: \"\w+\" there, \"\w+\" asked; choose"):
        train(replace(asked, base=str(base)))
    # Runs of older releases go on: one recorded a SHA-256 of the start, one recorded none of it.
    file = tmp_path / "run" / "run.json"
    document = json.loads(file.read_text())
    document["start"]["checkpoint"] = "0" * 64
    file.write_text(json.dumps(document))
    train(asked)
    with pytest.raises(ConfigurationDiffers, match=r"start: \"a checkpoint\" there, null asked; choose"):
        train(replace(asked, start_from=None))
    # And what did not exist then counts as its default.
    for name in ("base", "start", "teacher_head", "shards_0_dataset", "optimizer", "token_weight"):
        del document[name]
    file.write_text(json.dumps(document))
    train(asked)
    with pytest.raises(ConfigurationDiffers, match=r'run.json: optimizer: "adamw" there, "muon" asked; choose'):
        train(replace(asked, optimizer="muon"))


@pytest.mark.parametrize("stage", ["align", "distill"])
def test_interrupted_run_continues_bit_for_bit(
    stage: str, finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    asked = settings(tiny_shards, tiny_teacher, tmp_path / "run")
    train_until(asked, 5, stage)
    (tmp_path / "run" / stage / "checkpoint-99").mkdir()
    train(asked)
    losses = [line for line in figures(finished) if "loss" in line]
    assert figures(tmp_path / "run") == losses
    whole, continued = (load_file(run / "model.safetensors") for run in (finished, tmp_path / "run"))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


@pytest.mark.crash
def test_killed_run_continues_bit_for_bit(
    finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """SIGKILL at whatever instant it falls, several times, then to the end."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "arwkv_student.cli", "train", "--shards", str(tiny_shards), "--base"]
    command += [str(tiny_teacher), "--out", str(out), "--head-dim", "16", "--steps", str(STEPS), "--batch-size", "4"]
    command += [
        "--align-lr",
        "3e-3",
        "--distill-lr",
        "3e-3",
        "--dtype",
        "fp32",
        "--log-every",
        "1",
        "--save-every",
        "2",
    ]
    for lines in (3, 8):
        process = subprocess.Popen([*command, "--workers", "0"], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()
    subprocess.run([*command, "--workers", "1"], check=True, stderr=subprocess.DEVNULL)
    assert figures(out) == [line for line in figures(finished) if "loss" in line]
    whole, continued = (load_file(run / "model.safetensors") for run in (finished, out))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_distill_alone_starts_from_another_student(
    finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    asked = replace(
        settings(tiny_shards, tiny_teacher, tmp_path / "run"), stage="distill", start_from=str(finished / "align")
    )
    train(asked)
    expected = [line["loss"] for line in figures(finished) if line["stage"] == "distill" and "loss" in line]
    assert [line["loss"] for line in figures(tmp_path / "run")] == expected


def test_preset_of_a_later_stage_decides_what_trains(
    finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Table 1's active MLP shares stage 1 with the frozen one; without a preset, the student's own decides."""
    asked = replace(
        settings(tiny_shards, tiny_teacher, tmp_path / "active"),
        stage="distill",
        start_from=str(finished / "align"),
        preset="arwkv-active-mlp",
        steps=1,
    )
    train(asked)
    train(replace(asked, out=tmp_path / "own", preset=None))
    before, active, own = (
        load_file(run / "model.safetensors") for run in (finished / "align", tmp_path / "active", tmp_path / "own")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(active[name], before[name])
    assert torch.equal(own[name], before[name])
    assert json.loads((tmp_path / "active" / "config.json").read_text())["preset"] == "arwkv-active-mlp"
    assert json.loads((tmp_path / "own" / "config.json").read_text())["preset"] == "arwkv"
    with pytest.raises(UsageError, match=r"gate: 'none' there, 'low-rank' asked"):
        train(replace(asked, out=tmp_path / "other", preset="rad-rwkv7"))


def test_what_does_not_fit_is_refused(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    asked = settings(tiny_shards, tiny_teacher, tmp_path / "run")
    with pytest.raises(UsageError, match="--shards is missing"):
        train(replace(asked, shards=()))
    with pytest.raises(UsageError, match="--base is missing"):
        train(replace(asked, base=""))
    with pytest.raises(NotFound):
        train(replace(asked, shards=(str(tmp_path / "nowhere"),)))
    with pytest.raises(NotFound, match="no such folder"):
        train(replace(asked, base=str(tmp_path / "nowhere")))
    other = tmp_path / "other"
    shutil.copytree(tiny_teacher, other)
    swap_two_tokens(other)
    with pytest.raises(UsageError, match=r"tokenizer of .* is not the shards'"):
        train(replace(asked, base=str(other)))
    wide = tmp_path / "wide"
    shutil.copytree(tiny_teacher, wide)
    config = Qwen2Config(
        vocab_size=544, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    Qwen2ForCausalLM(config).save_pretrained(wide)
    with pytest.raises(UsageError, match=r"hidden size 32 and 3 layers, the shards' hidden states 64 and 2"):
        train(replace(asked, base=str(wide)))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="choose a folder that can be written"):
        train(replace(asked, out=blocked))
    assert not (tmp_path / "run" / "align").exists()


def _without_hidden(tiny_shards: Path, tmp_path: Path) -> Path:
    from arwkv_store import create_dataset, open_dataset

    dataset = open_dataset(tiny_shards, columns=["logits", "token_stats"])
    capture = dataset.info.capture.model_copy(update={"hidden_states": "none", "layers": ()})
    out = tmp_path / "logits-only"
    create_dataset(out, dataset.info.model_copy(update={"capture": capture})).write_shard(0, dataset[:4])
    return out


def test_shards_of_an_unknown_version_are_refused(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from arwkv_store.errors import UnsupportedVersion
    from arwkv_store.format.seal import sealed, unsealed

    copy = tmp_path / "future"
    shutil.copytree(tiny_shards, copy)
    document = unsealed((copy / "dataset.json").read_bytes(), "dataset.json")
    (copy / "dataset.json").write_bytes(sealed({**document, "format_version": 99}))
    with pytest.raises(UnsupportedVersion, match="99"):
        train(settings(copy, tiny_teacher, tmp_path / "run"))


def test_stages_follow_from_what_the_shards_hold(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    asked = settings(_without_hidden(tiny_shards, tmp_path), tiny_teacher, tmp_path / "run")
    assert set(train(replace(asked, steps=1))["stages"]) == {"distill"}


def test_last_checkpoint_is_the_newest_that_is_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / "align" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "whole.json").write_text("{}")
    assert run.last_checkpoint("align") == tmp_path / "align" / "checkpoint-10"
    assert not (tmp_path / "align" / "checkpoint-12").exists()


def test_training_over_http_is_training_from_the_folder(
    finished: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARWKV_CACHE", str(tmp_path / "cache"))
    with serving("--root", str(tiny_shards), cache=tmp_path / "api") as (address, _):
        asked = settings(tiny_shards, tiny_teacher, tmp_path / "run")
        train(replace(asked, shards=(f"{address}/v1/datasets/{tiny_shards.name}",)))
    assert figures(tmp_path / "run") == [line for line in figures(finished) if "loss" in line]


def test_time_mixers_and_the_rest_have_rates_of_their_own(tiny_teacher: Path) -> None:
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    plan = StagePlan("distill", steps=1, learning_rate=1e-3, tokens=1, rest_learning_rate=1e-5)
    rates = {}
    for group in parameter_groups(model, plan, weight_decay=0.1):
        for parameter in group["params"]:
            rates[parameter] = (group["lr"], group["weight_decay"])
    for name, parameter in model.named_parameters():
        rate = 1e-3 if ".time_mix." in name else 1e-5
        is_matrix = parameter.dim() >= 2 and "shift_mix" not in name and "bonus" not in name
        assert rates.pop(parameter) == (rate, 0.1 if is_matrix else 0.0), name
    assert not rates


def test_trackers_are_named_and_missing_ones_refused(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    asked = replace(settings(tiny_shards, tiny_teacher, tmp_path / "none"), stage="distill", steps=1, report_to=())
    train(asked)
    assert not (tmp_path / "none" / "tensorboard").exists()
    assert figures(tmp_path / "none")
    for tracker in ("wandb", "trackio"):
        if importlib.util.find_spec(tracker) is None:
            with pytest.raises(UsageError, match=f"--report-to {tracker}: the package {tracker} is not installed"):
                train(replace(asked, out=tmp_path / tracker, report_to=("tensorboard", tracker)))


def test_continued_run_shows_each_step_once_in_tensorboard(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    asked = replace(settings(tiny_shards, tiny_teacher, tmp_path), report_to=("tensorboard",))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for begins, ends, is_main in ((0, 33, True), (30, 40, True), (30, 40, False)):
        state = TrainerState(global_step=begins, is_world_process_zero=is_main)
        (reporter,) = reporters(tmp_path, "distill", asked)
        reporter.on_train_begin(arguments, state, TrainerControl())
        for state.global_step in range(begins + 1, ends + 1):
            reporter.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0 / state.global_step})
        if is_main:
            reporter.tb_writer.flush()  # and no end: the process is killed
    folder = tmp_path / "tensorboard" / "distill"
    assert len(list(folder.iterdir())) == 2, "processes beside the main one write nothing"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 41))
