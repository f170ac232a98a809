"""A capture that is not verified is held against transformers before its first shard."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from arwkv_producer.check import combination, reference
from arwkv_producer.check.combination import unverified
from arwkv_producer.check.doctor import doctor
from arwkv_producer.config import DoctorConfig, GenerateConfig
from arwkv_producer.run import backend
from arwkv_producer.run.generate import generate
from arwkv_producer.run.self_check import CaptureDiffers
from arwkv_producer.teacher.teacher import find_teacher
from arwkv_producer.teacher.transformers_engine import TransformersEngine
from arwkv_store import open_dataset
from arwkv_store.errors import UsageError


@pytest.fixture
def moved_teacher(tiny_teacher: Path, tmp_path: Path) -> Path:
    """The tiny teacher with one norm's weight a little larger."""
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    model.model.layers[1].post_attention_layernorm.weight.data.mul_(1.2)
    model.save_pretrained(tmp_path / "moved")
    return tmp_path / "moved"


@pytest.fixture
def answered_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the engine's place under another teacher's answers; what a family lacks in verification is put with it."""

    def put(folder: Path) -> None:
        def engine(setup: Any, settings: Any) -> TransformersEngine:
            return TransformersEngine(find_teacher(str(folder)), setup.dtype, settings)

        monkeypatch.setattr(backend, "TeacherEngine", engine)
        monkeypatch.setattr(backend, "require_runnable", lambda setup: None)

    return put


def asked(teacher: Path, corpus: Path, out: Path, **flags: Any) -> GenerateConfig:
    fields: dict[str, Any] = {"top_k": 16, "max_length": 48, "hidden_states": "attention", **flags}
    return GenerateConfig(teacher=str(teacher), data=(str(corpus),), out=str(out), **fields)


def test_a_wrong_engine_is_stopped_before_anything_is_stored(
    tiny_teacher: Path, moved_teacher: Path, short_corpus: Path, tmp_path: Path, answered_by: Any
) -> None:
    answered_by(moved_teacher)
    with pytest.raises(CaptureDiffers, match=r"true_logprob differs by .*no shard was written; use --capture-backend"):
        generate(asked(tiny_teacher, short_corpus, tmp_path / "out", self_check="always"))
    assert len(open_dataset(str(tmp_path / "out"))) == 0
    assert generate(asked(tiny_teacher, short_corpus, tmp_path / "out", self_check="never"))["shards"] > 0


@pytest.mark.parametrize("logits", ["top-k", "hybrid", "none"])
def test_a_right_engine_goes_on(
    tiny_teacher: Path,
    short_corpus: Path,
    tmp_path: Path,
    answered_by: Any,
    capsys: pytest.CaptureFixture[str],
    logits: str,
) -> None:
    answered_by(tiny_teacher)
    found = generate(asked(tiny_teacher, short_corpus, tmp_path / "out", dtype="bfloat16", logits=logits, samples=4))
    assert found["shards"] > 0
    said = capsys.readouterr().err
    assert "not verified: bfloat16 (verified: fp32 on an x86_64 CPU" in said
    assert "prompts fit transformers" in said


def test_a_reference_that_does_not_fit_is_named_and_the_run_goes_on(
    tiny_teacher: Path,
    short_corpus: Path,
    tmp_path: Path,
    answered_by: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answered_by(tiny_teacher)
    (tmp_path / "meminfo").write_text("MemTotal:  64 kB\nMemAvailable:  16 kB\n")
    monkeypatch.setattr(reference, "MEMORY", tmp_path / "meminfo")
    assert generate(asked(tiny_teacher, short_corpus, tmp_path / "out", dtype="bfloat16"))["shards"] > 0
    assert "cannot check itself here: its weights take 0.0 GB in transformers" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--self-check always: its weights take"):
        generate(asked(tiny_teacher, short_corpus, tmp_path / "other", self_check="always"))


def test_what_is_new_is_named_before_anything_loads(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = find_teacher(str(tiny_teacher))
    assert unverified(teacher, "pooler", "float32") == ()
    assert unverified(teacher, "transformers", "bfloat16") == ()
    assert unverified(teacher, "stock", "float32") == ()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr(combination, "vllm_version", lambda: "0.33.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    new = ("bfloat16", "vLLM 0.33.0", "VLLM_USE_V2_MODEL_RUNNER=1", "GPU")
    assert unverified(teacher, "pooler", "bfloat16") == new
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))
    found = doctor(DoctorConfig(teacher=str(tiny_teacher)))
    assert found["verified"].startswith("not verified: vLLM 0.33.0, ")
    assert "GB of the memory of one GPU are free; run producer verify" in found["self_check"]


def test_a_wrapper_is_not_verified_because_its_text_part_is(tiny_teacher: Path, tmp_path: Path) -> None:
    text = json.loads((tiny_teacher / "config.json").read_text())
    wrapper = {"model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(wrapper))
    new = ("internvl in vLLM (this wrapper was not compared)", "internvl with --capture-backend stock")
    assert unverified(find_teacher(str(tmp_path)), "stock", "float32") == new
