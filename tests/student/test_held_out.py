"""RUN/samples.jsonl: what teacher and student say to the same held-out texts, evaluation by evaluation."""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from arwkv_api.views.runs import read_samples
from arwkv_store import open_dataset
from arwkv_student.model.loading import load_student
from arwkv_student.settings import TrainSettings
from arwkv_student.training.pipeline import train
from student_faults import train_until


@torch.no_grad()
def test_texts_are_each_models_likeliest_tokens_and_survive_a_kill(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "run", stage="distill", head_dim=16, steps=4,
        batch_size=4, distill_lr=3e-3, dtype="fp32", eval_shards=str(tiny_shards), eval_every=1, save_every=2,
        workers=0,
    )  # fmt: skip
    with torch.enable_grad():
        train_until(settings, 3)
        train(settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("distill", step) for step in (1, 2, 3, 4) for _ in "abc"
    ]
    assert len(read_samples(tmp_path / "run", 20)) == 12
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    teacher, student = Qwen2ForCausalLM.from_pretrained(tiny_teacher).eval(), load_student(tmp_path / "run").eval()
    for line, sample in zip(lines[-3:], open_dataset(tiny_shards)[:3], strict=True):
        tokens = torch.from_numpy(sample.tokens).long()
        half = (len(tokens) + 1) // 2
        assert line["prompt"] == tokenizer.decode(tokens[:half])
        for who, model in (("teacher", teacher), ("student", student)):
            likeliest = model(tokens[None]).logits[0, half - 1 : -1, :500].argmax(-1)
            assert line[who] == tokenizer.decode(likeliest), who
