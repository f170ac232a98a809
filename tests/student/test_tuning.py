import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_conversations import TEMPLATE, turns
from torch.nn import functional as F
from transformers import AutoTokenizer

from arwkv_store.errors import ConfigurationDiffers, CorruptShard, NotFound, UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.model.loading import load_student
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from arwkv_student.training.tuned_trainer import TunedTrainer
from arwkv_student.training.tuning import make_tuner, open_start
from student_faults import train_until

STEPS = 8
WORDS = ("import os", "def f():", "return 1", "class A:", "for i in x:", "pass", "else:", "try:")


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a chat template: what stage 2 leaves."""
    folder = tmp_path_factory.mktemp("student") / "distilled"
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    convert(base, student_config(base, "arwkv-gate-active-mlp", {"head_dim": 16})).model.save_pretrained(folder)
    copy_tokenizer(tiny_teacher, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sft.jsonl`: questions of ragged lengths with one kind of answer; `dpo.jsonl`: that answer against another."""
    folder = tmp_path_factory.mktemp("data")
    asked = [f"{word} {' '.join(WORDS[: 1 + n])}" for n, word in enumerate(WORDS)]
    sft = [{"messages": turns(question, f"return {WORDS[n]}")} for n, question in enumerate(asked)]
    dpo = [
        {"prompt": turns(question), "chosen": turns("", "return 1")[1:], "rejected": turns("", "class A: pass")[1:]}
        for question in asked
    ]
    for name, records in (("sft", sft), ("dpo", dpo)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def settings(stage: str, student: Path, data: Path, out: Path) -> TrainSettings:
    return TrainSettings(
        stage=stage,
        start_from=str(student),
        data=str(data / f"{stage}.jsonl"),
        out=out,
        steps=STEPS,
        batch_size=4,
        max_length=96,
        sft_lr=3e-3,
        dpo_lr=1e-3,
        dtype="fp32",
        log_every=1,
        save_every=2,
        workers=0,
        reference=str(out.parent / "reference"),
    )


def tuner(asked: TrainSettings) -> TunedTrainer:
    start = open_start(asked)
    return make_tuner(asked, start, RunFolder(asked.out), start.rows(asked, str(asked.data), "--data"))


def figures(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines]


@pytest.fixture(scope="module")
def tuned(student: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN folders `sft`, and `dpo` which starts from it."""
    folder = tmp_path_factory.mktemp("tuned")
    train(replace(settings("sft", student, data, folder / "sft"), eval_data=str(data / "sft.jsonl"), eval_every=4))
    train(replace(settings("dpo", folder / "sft", data, folder / "dpo"), eval_data=str(data / "dpo.jsonl")))
    return folder


def test_sft_loss_falls_and_replies_get_likelier(tuned: Path) -> None:
    losses = [line["loss"] for line in figures(tuned / "sft") if "loss" in line]
    assert len(losses) == STEPS
    assert losses[-1] < 0.7 * losses[0]
    held_out = [line for line in figures(tuned / "sft") if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [4, 8]
    assert held_out[1]["eval_loss"] < held_out[0]["eval_loss"]


def test_dpo_margin_rises_from_nothing(tuned: Path) -> None:
    lines = [line for line in figures(tuned / "dpo") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
    assert lines[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["rewards/margins"] > 0.1
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert figures(tuned / "dpo")[-1]["eval_rewards/accuracies"] == 1.0


def test_tuned_student_names_the_rows_that_are_no_tokens(tuned: Path) -> None:
    for folder in (tuned / "sft", tuned / "dpo"):
        assert json.loads((folder / "generation_config.json").read_text())["suppress_tokens"] == list(range(500, 544))


def test_run_holds_the_tuned_student_with_its_template(tuned: Path) -> None:
    for stage in ("sft", "dpo"):
        weights = [load_file(folder / "model.safetensors") for folder in (tuned / stage, tuned / stage / stage)]
        assert all(torch.equal(weights[0][name], x) for name, x in weights[1].items())
        assert AutoTokenizer.from_pretrained(tuned / stage).chat_template == TEMPLATE
        folders = {path.name for path in (tuned / stage / stage).iterdir() if path.is_dir()}
        assert folders <= {"reference"}
        assert not list((tuned / stage).rglob("*.bin"))
        load_student(tuned / stage)


def test_sft_loss_is_the_cross_entropy_of_the_replies_shifted_once(student: Path, data: Path, tmp_path: Path) -> None:
    asked = settings("sft", student, data, tmp_path / "run")
    trainer = tuner(asked)
    rows = [trainer.train_dataset[row] for row in range(4)]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    count = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    model = load_student(student).eval()
    expected = torch.zeros(())
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
        labels = torch.tensor(row["labels"])
        expected = expected + F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
    torch.testing.assert_close(loss, expected / count, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention_layers", [(), (1,)])
def test_packed_conversations_have_the_padded_batchs_loss_and_gradient(
    attention_layers: tuple[int, ...], tiny_teacher: Path, student: Path, data: Path, tmp_path: Path
) -> None:
    base = open_base(str(tiny_teacher))
    layers = None if not attention_layers else [layer for layer in (0, 1) if layer not in attention_layers]
    torch.manual_seed(0)
    model = convert(base, student_config(base, "rad-rwkv7", None, layers)).model
    model.save_pretrained(tmp_path / "start")
    copy_tokenizer(student, tmp_path / "start")
    gradients = []
    for packing in (False, True):
        trainer = tuner(replace(settings("sft", tmp_path / "start", data, tmp_path / "run"), packing=packing))
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[row] for row in range(4)]))
        assert len(batch["input_ids"]) == (1 if packing else 4)
        count = (batch["labels"] != -100).sum()
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).backward()
        gradients.append({name: parameter.grad for name, parameter in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    with pytest.raises(UsageError, match="does not work with stage dpo"):
        tuner(replace(settings("dpo", student, data, tmp_path / "run"), packing=True))


def test_dpo_loss_is_that_of_unpadded_log_probabilities(tuned: Path, student: Path, data: Path) -> None:
    asked = replace(settings("dpo", student, data, tuned / "hand"), reference=str(tuned / "hand-reference"))
    trainer = tuner(asked)
    rows = [trainer.train_dataset[row] for row in range(3)]
    trainer.model.load_state_dict(load_file(tuned / "sft" / "model.safetensors"))
    loss = trainer.compute_loss(trainer.model, dict(trainer._prepare_inputs(trainer.data_collator(rows))))
    before, now = load_student(student).eval(), load_student(tuned / "sft").eval()

    def logp(model: torch.nn.Module, prompt: list[int], reply: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + reply])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        return logprobs[len(prompt) - 1 :].sum()

    margins = [
        logp(now, row["prompt_ids"], row["chosen_ids"])
        - logp(before, row["prompt_ids"], row["chosen_ids"])
        - logp(now, row["prompt_ids"], row["rejected_ids"])
        + logp(before, row["prompt_ids"], row["rejected_ids"])
        for row in rows
    ]
    expected = -F.logsigmoid(asked.dpo_beta * torch.stack(margins)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pairs each computation of reference log-probabilities had."""
    from arwkv_student.training.dpo import PreferenceTrainer

    computed: list[int] = []
    original = PreferenceTrainer._reference_logps

    def counting(self: PreferenceTrainer, dataset: object, batch_size: int) -> object:
        computed.append(len(dataset))  # type: ignore[arg-type] # a datasets.Dataset
        return original(self, dataset, batch_size)

    monkeypatch.setattr(PreferenceTrainer, "_reference_logps", counting)
    return computed


def test_reference_is_computed_once_and_anew_when_anything_differs(
    counted: list[int], tuned: Path, student: Path, data: Path, tmp_path: Path
) -> None:
    asked = settings("dpo", student, data, tmp_path / "run")

    first = tuner(asked).train_dataset
    again = tuner(replace(asked, dpo_beta=0.5, dpo_lr=1e-4)).train_dataset
    assert counted == [8]
    assert first["ref_chosen_logps"][:] == again["ref_chosen_logps"][:]
    assert all(logp < 0 for logp in first["ref_rejected_logps"])
    tuner(replace(asked, start_from=str(tuned / "sft")))
    assert len(counted) == 2
    tuner(replace(asked, max_length=48))
    assert len(counted) == 3
    (tmp_path / "other.jinja").write_text(TEMPLATE.replace("<", "["))
    tuner(replace(asked, chat_template=str(tmp_path / "other.jinja")))
    assert len(counted) == 4
    lines = [json.loads(line) for line in (data / "dpo.jsonl").read_text().splitlines()]
    moved = [{**line, "prompt": turns("", *[t["content"] for t in line["prompt"]])[1:]} for line in lines]
    (tmp_path / "moved.jsonl").write_text("".join(json.dumps(line) + "\n" for line in moved))
    tuner(replace(asked, data=str(tmp_path / "moved.jsonl")))
    assert len(counted) == 5
    for file in (tmp_path / "reference").iterdir():
        file.write_bytes(b"no tensors")
    with pytest.raises(CorruptShard, match="remove it"):
        tuner(asked)


def test_mask_is_part_of_the_references_key() -> None:
    from arwkv_student.data.conversation_rows import as_rows
    from arwkv_student.data.conversations import Pair
    from arwkv_student.training.dpo import ReferenceKey

    key = ReferenceKey("checkpoint", "template", "truncation", "fp32")
    one, other = (key.of(as_rows([Pair(*ids)])) for ids in (([1, 2], [3], [4]), ([1], [2, 3], [2, 4])))
    assert one.tokens == other.tokens
    assert one.mask != other.mask
    assert one.file_name != other.file_name


def test_second_start_tokenizes_nothing_unless_something_changed(
    student: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arwkv_student.data import conversation_rows

    def tokenizes(*_: object, **__: object) -> None:
        raise InterruptedError

    asked = replace(settings("sft", student, data, tmp_path / "run"), data=str(tmp_path / "own.jsonl"))
    (tmp_path / "own.jsonl").write_text((data / "sft.jsonl").read_text())
    rows = open_start(asked).rows(asked, str(asked.data), "--data")
    monkeypatch.setattr(conversation_rows, "_tokenized", tokenizes)
    assert open_start(asked).rows(asked, str(asked.data), "--data")[:] == rows[:]
    other = replace(asked, chat_template=str(tmp_path / "other.jinja"))
    (tmp_path / "other.jinja").write_text(TEMPLATE.replace("<", "["))
    for changed in (other, replace(asked, max_length=48)):
        with pytest.raises(InterruptedError):
            open_start(changed).rows(changed, str(asked.data), "--data")
    (tmp_path / "own.jsonl").write_text((data / "sft.jsonl").read_text() * 2)
    with pytest.raises(InterruptedError):
        open_start(asked).rows(asked, str(asked.data), "--data")


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_interrupted_stage_continues_bit_for_bit(
    stage: str, student: Path, data: Path, tuned: Path, tmp_path: Path
) -> None:
    start = student if stage == "sft" else tuned / "sft"
    asked = settings(stage, start, data, tmp_path / "run")
    train_until(asked, 5)
    (tmp_path / "run" / stage / "checkpoint-99").mkdir()
    train(asked)
    assert figures(tmp_path / "run") == [line for line in figures(tuned / stage) if "loss" in line]
    whole, continued = (load_file(run / "model.safetensors") for run in (tuned / stage, tmp_path / "run"))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_changed_data_or_start_is_refused_by_name(tuned: Path, student: Path, data: Path, tmp_path: Path) -> None:
    asked = replace(settings("sft", student, data, tuned / "sft"), eval_data=str(data / "sft.jsonl"), eval_every=4)
    before = (tuned / "sft" / "metrics.jsonl").read_text()
    assert train(asked)["stages"]["sft"]["steps"] == STEPS
    assert (tuned / "sft" / "metrics.jsonl").read_text() == before
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text((data / "sft.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigurationDiffers, match=r"data_hash: "):
        train(replace(asked, data=str(shorter)))
    with pytest.raises(ConfigurationDiffers, match="start: "):
        train(replace(asked, start_from=str(tuned / "dpo")))


def test_what_is_missing_is_named(student: Path, data: Path, tmp_path: Path, tiny_teacher: Path) -> None:
    asked = settings("sft", student, data, tmp_path / "run")
    with pytest.raises(UsageError, match="--start-from is missing"):
        train(replace(asked, start_from=None))
    with pytest.raises(UsageError, match="--data is missing"):
        train(replace(asked, data=None))
    with pytest.raises(NotFound, match="name a JSONL file"):
        train(replace(asked, data="nowhere.jsonl"))
    with pytest.raises(NotFound, match=r"no config\.json there"):
        train(replace(asked, start_from=str(tmp_path)))
    with pytest.raises(UsageError, match="raise --max-length"):
        train(replace(asked, max_length=2))
    assert not (tmp_path / "run").exists()
