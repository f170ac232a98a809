"""Families of teachers, in vLLM and in transformers, against transformers' own logits and hidden states."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arwkv_producer.check.doctor import doctor
from arwkv_producer.check.verify import verify
from arwkv_producer.cli import main
from arwkv_producer.config import DoctorConfig, GenerateConfig, VerifyConfig
from arwkv_producer.run.generate import generate
from arwkv_producer.teacher.families import FAMILIES, FORMS
from arwkv_store import Dataset, open_dataset
from arwkv_store.errors import UsageError
from producer_captures import Captures, Reference, run_captures
from tiny_teachers import tiny_teacher_of

NATS = 1e-4
ROUNDING = 2**-8
IN_VLLM = [name for name, family in FAMILIES.items() if not family.not_in_vllm]
KINDS = ("attention", "boundaries", "final")
SHOWN = "ernie4_5"
"""Its blocks are not known here; vLLM shows the stream between them."""
WRONG = "apertus"
"""vLLM keeps the scales of its activation in bf16, whatever the others' arithmetic is."""


def hidden_states(model_type: str) -> str:
    """A kind that the family has, each kind for some family."""
    family, number = FAMILIES[model_type], list(FAMILIES).index(model_type)
    if family.form is None:
        return "final"
    return KINDS[number % 2] if family.boundaries else "attention"


@pytest.fixture(scope="module")
def teachers(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each family, made when asked for (see `teacher`)."""
    return tmp_path_factory.mktemp("families")


def teacher(name: str, teachers: Path, tokenizer: Path) -> Path:
    folder = teachers / name
    return folder if folder.exists() else tiny_teacher_of(name, tokenizer, folder)


def assert_as_in_transformers(dataset: Dataset, folder: Path, every: int = 4) -> None:
    reference = Reference(folder, vocab_size=500)
    for index in range(0, len(dataset), every):
        sample = dataset[index]
        assert sample.logits is not None
        full, states = reference.logprobs(sample), reference.hidden(sample)
        stored = torch.from_numpy(sample.logits.logprobs.reshape(-1, 16)).double()
        torch.testing.assert_close(stored, full.topk(16, dim=-1).values, atol=NATS, rtol=0)
        assert sample.hidden
        for name, state in sample.hidden.items():
            own = torch.from_numpy(state.astype(np.float32))
            torch.testing.assert_close(own, states[name], atol=1e-4, rtol=ROUNDING)


def in_transformers(model_type: str, teachers: Path, tokenizer: Path, corpus: Path, out: Path, **flags: Any) -> Path:
    folder = teacher(model_type, teachers, tokenizer)
    asked = {"top_k": 16, "max_length": 48, "hidden_states": hidden_states(model_type), **flags}
    generate(
        GenerateConfig(teacher=str(folder), data=(str(corpus),), out=str(out), capture_backend="transformers", **asked)
    )
    return folder


QUICK = ("gemma2", "granite", "gpt_oss")


@pytest.mark.parametrize(
    "model_type",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_family_is_captured_in_transformers_and_verified(
    model_type: str, teachers: Path, tiny_teacher: Path, short_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    folder = in_transformers(model_type, teachers, tiny_teacher, short_corpus, out)
    dataset = open_dataset(str(out))
    assert_as_in_transformers(dataset, folder)
    found = verify(VerifyConfig(shards=str(out), teacher=str(folder), samples=2))
    assert found["largest_differences"]["logprobs"] < NATS
    form = FAMILIES[model_type].form
    recorded = None if hidden_states(model_type) == "final" or form == "pre-norm" else form
    assert dataset.info.teacher.block_form == recorded
    assert dataset.info.created_by == "arwkv producer, transformers"


@pytest.mark.parametrize("logits", ["adaptive", "sampled", "hybrid", "none"])
def test_every_mode_in_transformers_is_what_vllm_captures(
    logits: str, captures: Captures, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    theirs = {"adaptive": "boundaries", "none": "final"}.get(logits, logits)
    if "error" in captures.summaries[theirs]:
        pytest.fail(str(captures.summaries[theirs]))
    expected = captures.open(theirs)
    capture = expected.info.capture
    flags: dict[str, Any] = {"logits": logits, "hidden_states": capture.hidden_states, "max_length": capture.max_length}
    flags |= {name: value for name in ("top_k", "top_p", "samples") if (value := getattr(capture, name)) is not None}
    asked = GenerateConfig(
        teacher=str(tiny_teacher),
        data=(str(tiny_corpus),),
        out=str(tmp_path),
        capture_backend="transformers",
        **flags,
    )
    generate(asked)
    found = open_dataset(str(tmp_path))
    assert len(found) == len(expected)
    same = total = 0
    for index in range(0, len(found), 5):
        ours, other = found[index], expected[index]
        for name, state in other.hidden.items():
            own = ours.hidden[name].astype(np.float32)
            np.testing.assert_allclose(own, state.astype(np.float32), atol=1e-4, rtol=2**-7)
        if ours.logits is None or other.logits is None:
            assert ours.logits is None is other.logits
            continue
        same += len(set(ours.logits.ids.tolist()) & set(other.logits.ids.tolist()))
        total += len(set(other.logits.ids.tolist()))
    assert same >= 0.99 * total


@pytest.fixture(scope="module")
def in_vllm(
    teachers: Path, tiny_teacher: Path, short_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Captures:
    folder = tmp_path_factory.mktemp("families-in-vllm")

    def asked(out: str, name: str, **flags: Any) -> dict[str, Any]:
        fields = {"teacher": str(teacher(name, teachers, tiny_teacher)), "data": [str(short_corpus)], "top_k": 16}
        return {**fields, "max_length": 64, "out": str(folder / out), **flags}

    runs = {name: asked(name, name, hidden_states=hidden_states(name)) for name in IN_VLLM}
    runs[SHOWN] = asked(SHOWN, SHOWN, hidden_states="boundaries")
    runs[WRONG] = asked(WRONG, WRONG, hidden_states="none")
    return Captures(folder, dict(zip(runs, run_captures(list(runs.values()), timeout_s=1600), strict=True)))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of which the first waits for all captures
@pytest.mark.parametrize("model_type", IN_VLLM)
def test_family_is_captured_in_vllm_as_transformers_computes_it(
    model_type: str, in_vllm: Captures, teachers: Path, tiny_teacher: Path
) -> None:
    assert "error" not in in_vllm.summaries[model_type], in_vllm.summaries[model_type]
    assert_as_in_transformers(in_vllm.open(model_type), teacher(model_type, teachers, tiny_teacher))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_boundaries_of_unknown_blocks_are_those_that_vllm_shows(
    in_vllm: Captures, teachers: Path, tiny_teacher: Path
) -> None:
    assert SHOWN not in FAMILIES
    assert "error" not in in_vllm.summaries[SHOWN], in_vllm.summaries[SHOWN]
    assert_as_in_transformers(in_vllm.open(SHOWN), teacher(SHOWN, teachers, tiny_teacher))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_vllm_that_answers_wrongly_is_stopped_before_the_first_shard(in_vllm: Captures) -> None:
    refused = in_vllm.summaries[WRONG]
    assert (refused["error"], refused["exit_code"]) == ("CaptureDiffers", 3)
    assert "vLLM does not answer as transformers does here: " in refused["message"]
    assert "no shard was written; use --capture-backend transformers" in refused["message"]
    assert len(in_vllm.open(WRONG)) == 0


@pytest.mark.parametrize("name", ["qwen3_moe", "olmo2"])
def test_two_families_are_captured_in_vllm(name: str, captures: Captures, family_teachers: dict[str, Path]) -> None:
    assert "error" not in captures.summaries[name], captures.summaries[name]
    assert_as_in_transformers(captures.open(name), family_teachers[name])


def test_every_form_of_a_block_is_described() -> None:
    assert {family.form for family in FAMILIES.values()} - {None} == set(FORMS)


def test_states_inside_blocks_of_unknown_form_are_refused_before_weights_load(
    teachers: Path, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"data": (str(tiny_corpus),), "out": str(tmp_path / "out"), "top_k": 16, "max_length": 64}
    for model_type, kind, message in (
        ("qwen3_next", "attention", "the form of qwen3_next blocks is not known"),
        ("cohere", "boundaries", "cohere layers do not hand on one residual stream"),
    ):
        folder = teacher(model_type, teachers, tiny_teacher)
        with pytest.raises(UsageError, match=message):
            generate(GenerateConfig(teacher=str(folder), hidden_states=kind, **asked))
    with pytest.raises(UsageError, match="it runs on one device"):
        GenerateConfig(teacher="t", capture_backend="transformers", tensor_parallel=2, **asked)
    assert not (tmp_path / "out").exists()


def test_a_run_in_transformers_loads_no_vllm(
    python_with_transformers: list[str], teachers: Path, tiny_teacher: Path, short_corpus: Path, tmp_path: Path
) -> None:
    folder = teacher("granite", teachers, tiny_teacher)
    words = ["generate", "--teacher", str(folder), "--data", str(short_corpus), "--out", str(tmp_path / "out")]
    words += ["--capture-backend", "transformers", "--top-k", "4", "--max-length", "64"]
    code = (
        "import sys; sys.modules['vllm'] = None\nfrom arwkv_producer.cli import main\n"
        f"sys.argv = ['producer', *{words!r}]\nmain()"
    )
    done = subprocess.run([*python_with_transformers, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(open_dataset(str(tmp_path / "out"))) > 0


def test_doctor_says_what_will_happen(
    teachers: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor(DoctorConfig(teacher=str(teacher("cohere", teachers, tiny_teacher))))
    assert found["architecture"] == "CohereForCausalLM"
    assert found["captured"] == "logits, final, attention"
    assert found["block"].startswith("parallel: h + attention(norm(h)) + mlp(norm(h))")
    assert "V1 runner" in found["engine"]
    assert found["weights_bytes"] > 0
    assert (found["verified"][:9], found["self_check"][:10]) == ("verified:", "not needed")
    strange = teachers / "strange"
    strange.mkdir()
    config = json.loads((teacher("cohere", teachers, tiny_teacher) / "config.json").read_text())
    config |= {"architectures": ["StrangeForCausalLM"], "model_type": "strange"}
    (strange / "config.json").write_text(json.dumps(config))
    found = doctor(DoctorConfig(teacher=str(strange)))
    assert "has no architecture StrangeForCausalLM; use --capture-backend transformers" in found["engine"]
    assert (found["captured"], found["block"]) == ("logits, final", "unknown")
    assert "this family was not compared" in found["verified"]
    found = doctor(DoctorConfig(teacher=str(teacher(SHOWN, teachers, tiny_teacher))))
    assert (found["captured"], found["block"]) == ("logits, final, boundaries in vLLM", "unknown")
    found = doctor(DoctorConfig(teacher=str(teacher("llava", teachers, tiny_teacher))))
    if importlib.util.find_spec("torchvision") is None:
        assert "vLLM cannot load its class LlavaForConditionalGeneration (No module named" in found["engine"]
    monkeypatch.setattr(sys, "argv", ["producer", "doctor"])
    with pytest.raises(SystemExit, match="0"):
        main()
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(FAMILIES)
    assert table[0].split()[0] == "model_type"
