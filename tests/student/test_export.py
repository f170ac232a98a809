import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from tiny_bases import tiny_base

from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.export.export import export
from arwkv_student.model.architectures import ARCHITECTURES
from arwkv_student.model.loading import load_student
from arwkv_student.settings import ExportSettings, TrainSettings
from arwkv_student.training.pipeline import train

WITHOUT_OUR_PACKAGES = """
import sys
for name in ("arwkv_student", "arwkv_store", "arwkv_kernels", "numba"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
AutoTokenizer.from_pretrained(folder)
tokens = torch.arange(40).view(2, 20)
mask = torch.ones_like(tokens)
mask[0, :7] = 0
generated = model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
torch.save({"logits": model(tokens).logits, "generated": generated}, out)
"""


TOKENS = torch.arange(40).view(2, 20)


def run_without_our_packages(python: list[str], code: str, exported: Path, tmp_path: Path) -> None:
    """The code leaves result.pt there."""
    command = [*python, "-c", code, str(exported), str(tmp_path / "result.pt")]
    done = subprocess.run(command, env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def moved_student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student in fp32, every weight moved off its start."""
    folder = tmp_path_factory.mktemp("moved")
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, "arwkv", {"head_dim": 16})).model
    for parameter in student.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    student.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "preset", "layers"),
    [
        ("qwen2", "arwkv-gate-active-mlp", None),
        ("qwen2", "rad-rwkv7", (1,)),
        *(pytest.param(name, "rad-rwkv7", (1,), marks=pytest.mark.slow) for name in ARCHITECTURES if name != "qwen2"),
    ],
)
def test_self_contained_export_needs_transformers_alone(
    model_type: str,
    preset: str,
    layers: tuple[int, ...] | None,
    python_with_transformers: list[str],
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    base = open_base(str(tiny_base(model_type, tiny_teacher, tmp_path / "base")))
    options = {} if preset == "rad-rwkv7" else {"head_dim": 16}
    student = convert(base, student_config(base, preset, options, layers)).model.eval()
    for parameter in student.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    student.save_pretrained(tmp_path / "run")
    copy_tokenizer(tiny_teacher, tmp_path / "run")
    export(ExportSettings(model=str(tmp_path / "run"), out=tmp_path / "out", self_contained=True))
    run_without_our_packages(python_with_transformers, WITHOUT_OUR_PACKAGES, tmp_path / "out", tmp_path)
    result = torch.load(tmp_path / "result.pt")
    tokens = torch.arange(40).view(2, 20)
    torch.testing.assert_close(result["logits"], student(tokens).logits, rtol=1e-3, atol=1e-4)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    padding = list(range(500, 544))
    own = student.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False, suppress_tokens=padding)
    assert torch.equal(result["generated"], own)
    assert "Preset | " + preset in (tmp_path / "out" / "README.md").read_text()
    kinds = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert kinds <= {".safetensors", ".json", ".py", ".md"}


LOADS_IN_BF16 = """
import sys
for name in ("arwkv_student", "arwkv_store", "arwkv_kernels", "numba"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.bfloat16).eval()
logits = model(torch.arange(20)[None]).logits
torch.save({"logits": logits, "bias": model.model.layers[1].time_mix.decay.bias}, sys.argv[2])
"""


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)])
def test_export_is_written_in_the_type_asked_for_but_for_the_decays_bias(
    dtype: Literal["bf16", "fp16", "fp32"], stored: torch.dtype | None, moved_student: Path, tmp_path: Path
) -> None:
    export(ExportSettings(model=str(moved_student), out=tmp_path, dtype=dtype))
    weights, own = load_file(tmp_path / "model.safetensors"), load_file(moved_student / "model.safetensors")
    assert own.keys() == weights.keys()
    for name, tensor in own.items():
        kept = stored is None or name.endswith("decay.bias")
        assert torch.equal(weights[name], tensor if kept else tensor.to(stored)), name
    loaded = load_student(tmp_path).eval()
    assert loaded.dtype == (stored or torch.float32)
    assert str(loaded.dtype).removeprefix("torch.") + "; the decay's bias" in (tmp_path / "README.md").read_text()
    said, whole = loaded(TOKENS).logits.float(), load_student(moved_student).eval()(TOKENS).logits
    assert (said - whole).norm() < 0.05 * whole.norm()


def test_self_contained_export_keeps_the_decays_bias_whole_in_bf16(
    python_with_transformers: list[str], moved_student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(ExportSettings(model=str(moved_student), out=out, dtype="fp32", self_contained=True))
    run_without_our_packages(python_with_transformers, LOADS_IN_BF16, out, tmp_path)
    result, whole = torch.load(tmp_path / "result.pt"), load_student(moved_student).eval()
    assert torch.equal(result["bias"], whole.model.layers[1].time_mix.decay.bias)
    assert result["logits"].dtype == torch.bfloat16


def test_export_into_the_student_itself_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    base = open_base(str(tiny_teacher))
    convert(base, student_config(base, "arwkv", {"head_dim": 16})).model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is the student itself"):
        export(ExportSettings(model=str(tmp_path), out=tmp_path))


def test_card_tells_teacher_shards_recipe_and_figures(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    asked = TrainSettings(
        shards=(str(tiny_shards),),
        base=str(tiny_teacher),
        out=tmp_path / "run",
        head_dim=16,
        steps=1,
        batch_size=4,
        eval_shards=str(tiny_shards),
        workers=0,
    )
    train(asked)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "import", "completion": " os"}) + "\n")
    train(replace(asked, stage="sft", start_from=str(tmp_path / "run"), data=str(data), out=tmp_path / "tuned"))
    export(ExportSettings(model=str(tmp_path / "tuned"), out=tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    info = open_dataset(tiny_shards).info
    held_out = json.loads((tmp_path / "run" / "distill" / "stage.json").read_text())["eval"]
    told = [tiny_teacher.name, info.corpus.fingerprint, "hidden states attention", f"kl {held_out['kl']:.4g}"]
    told += ["align_lr 0.001", "sft_lr 1e-05", "| sft | 1 |", hashlib.sha256(data.read_bytes()).hexdigest()]
    told += [base_hash(tiny_teacher), json.loads((tiny_shards / "dataset.json").read_text())["self_hash"]]
    for fact in told:
        assert fact in card, fact
    assert list((tmp_path / "out").glob("*.safetensors"))


def test_card_of_a_later_stage_tells_the_stage_before(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """Stage 2 in a run of its own, from a stage 1 whose run has gone on since."""
    first = TrainSettings(
        shards=(str(tiny_shards),), base=str(tiny_teacher), out=tmp_path / "first", head_dim=16, steps=1, batch_size=4,
        align_lr=0.0123, distill_lr=0.0456, workers=0,
    )  # fmt: skip
    train(first)
    start = str(tmp_path / "first" / "align")
    train(replace(first, out=tmp_path / "second", stage="distill", start_from=start, steps=2))
    export(ExportSettings(model=str(tmp_path / "second"), out=tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| align | 1 |" in card
    assert "| distill | 2 |" in card
    assert "| distill | 1 |" not in card
    assert card.count(f"| Base | {tiny_teacher}, {base_hash(tiny_teacher)} |") == 2
    assert "align_lr 0.0123" in card


def base_hash(folder: Path) -> str:
    return open_base(str(folder)).weights_hash
