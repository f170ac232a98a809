import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arwkv_store import open_dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.export.export import export
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


@pytest.mark.parametrize(("preset", "layers"), [("arwkv-gate-active-mlp", None), ("rad-rwkv7", (1,))])
def test_self_contained_export_needs_transformers_alone(
    preset: str, layers: tuple[int, ...] | None, tiny_teacher: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    student = convert(base, student_config(base, preset, {"head_dim": 16}, layers)).model.eval()
    for parameter in student.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    student.save_pretrained(tmp_path / "run")
    copy_tokenizer(tiny_teacher, tmp_path / "run")
    export(ExportSettings(model=str(tmp_path / "run"), out=tmp_path / "out", self_contained=True))
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_OUR_PACKAGES, str(tmp_path / "out"), str(tmp_path / "result.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
