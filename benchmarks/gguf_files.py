"""GGUF files of a student: seconds and memory of the export, and what each type of weights costs in llama.cpp.

    OMP_NUM_THREADS=1 python benchmarks/gguf_files.py --model RUN [--text FILE] [--dtypes f16 q8_0 q4_0] [--tokens 2048]

`--base FOLDER` instead of `--model` takes an untrained student of that base, whose size is what it shows. Each export
runs in a process of its own; its memory is the peak of that process above what it takes to load the code.
KL(f32 ‖ type) is the mean over the positions of held-out text, both computed by llama.cpp, after reading from the start
of each piece of `--piece` tokens.
"""

import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from arwkv_store.commands.command_line import main
from figures import print_table, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


@dataclasses.dataclass(frozen=True)
class GgufConfig:
    """Seconds, memory, size and KL of a student's GGUF files."""

    model: Path | None = None
    """Folder of a student."""
    base: Path | None = None
    """Instead: folder of a base, of which an untrained student is made."""
    text: Path = Path(__file__).parents[1] / "docs/recipe.md"
    """Held-out text, plain or as JSON lines with a field `text`."""
    dtypes: tuple[str, ...] = ("f32", "f16", "bf16", "q8_0", "q4_0")
    """Types of the weights."""
    tokens: int = 2048
    """Positions that are compared."""
    piece: int = 512
    """Tokens that are read together."""
    threads: int = 1
    """llama.cpp's threads."""
    json_out: Path | None = None
    """Write the figures there too."""
    json: bool = False
    """Print the figures as one JSON document."""


def measure(config: GgufConfig) -> dict[str, Any]:
    """Export every type, compare each with f32, and print one table."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = config.model or _untrained(config.base, Path(scratch))
        files = {kind: Path(scratch) / f"{kind}.gguf" for kind in ("f32", *config.dtypes)}
        ids = _ids(model, config)
        whole = None
        for kind, file in files.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(_export, model, file, kind).result()
            logprobs = _logprobs(file, ids, config)
            whole = logprobs if whole is None else whole
            kl = np.concatenate([(np.exp(p) * (p - q)).sum(1) for p, q in zip(whole, logprobs, strict=True)])
            same = np.concatenate([p.argmax(1) == q.argmax(1) for p, q in zip(whole, logprobs, strict=True)])
            rows.append({**row, "KL(f32 ‖ type), nats": float(kl.mean()), "same top token": float(same.mean())})
            if kind != "f32":
                file.unlink()
    if not config.json:
        print_table(
            f"{(config.model or config.base).resolve()}: {sum(map(len, ids)):,} tokens of {config.text.name}", rows
        )
    write_json(config.json_out, {"rows": rows})
    return {"rows": rows}


def _untrained(base: Path | None, scratch: Path) -> Path:
    import torch

    from arwkv_store.errors import UsageError
    from arwkv_student.bases.checkpoint import open_base
    from arwkv_student.bases.convert import convert, student_config
    from arwkv_student.bases.tokenizer import copy_tokenizer

    if base is None:
        raise UsageError("give --model (a student) or --base (what an untrained student is made of)")
    torch.manual_seed(0)
    opened = open_base(str(base))
    convert(opened, student_config(opened, "arwkv", {})).model.to(torch.bfloat16).save_pretrained(scratch / "student")
    copy_tokenizer(base, scratch / "student")
    return scratch / "student"


def _ids(model: Path, config: GgufConfig) -> list[list[int]]:
    from transformers import AutoTokenizer

    text = config.text.read_text()
    if config.text.suffix == ".jsonl":
        text = "\n\n".join(json.loads(line)["text"] for line in text.splitlines())
    ids = AutoTokenizer.from_pretrained(model)(text).input_ids[: config.tokens]
    return [ids[at : at + config.piece] for at in range(0, len(ids), config.piece)]


def _export(model: Path, file: Path, kind: str) -> dict[str, Any]:
    from arwkv_student.export.gguf_file import export_gguf
    from arwkv_student.settings import ExportSettings
    from process_memory import forget_peak, peak_bytes

    before = forget_peak()
    started = time.perf_counter()
    size_bytes = export_gguf(ExportSettings(model=str(model), out=file, dtype=kind))["size_bytes"]
    seconds, memory = time.perf_counter() - started, peak_bytes() - before
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return {
        "type": kind,
        "MB": size_bytes / 1e6,
        "export, s": seconds,
        "peak, MB": memory / 1e6,
        "peak / weights": memory / weights,
    }


def _logprobs(file: Path, ids: list[list[int]], config: GgufConfig) -> list[np.ndarray]:
    from llama_cpp import LlamaCpp

    with LlamaCpp(file, threads=config.threads) as loaded:
        logits = [loaded.logits(piece)[0].astype(np.float64) for piece in ids]
    return [one - np.log(np.exp(one - one.max(1, keepdims=True)).sum(1, keepdims=True)) - one.max(1, keepdims=True)
            for one in logits]  # fmt: skip


if __name__ == "__main__":
    main("gguf", "GGUF files of a student.", measure)
