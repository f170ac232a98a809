"""What the page's tests look at: a readable dataset, a large and a damaged one, and a run under way."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from api_many import many_shards
from arwkv_store.commands.noting import noted
from arwkv_store.format.heartbeat import Heartbeat
from arwkv_store.format.seal import self_hash
from store_examples import example_dataset_info, write_example_dataset, write_tokens

SAMPLE_DATASET = Path(__file__).parents[1] / "api" / "sample_dataset.py"


CORPUS = {
    "documents": 1200,
    "documents_duplicate": 7,
    "tokens": 34000,
    "tokens_counted": 33000,
    "turns": {"user": 40, "assistant": 41},
    "files_read": ["ast.py"],
    "files_passed_over": {"README.md": "not a data file"},
}


NOTE = "Third round. <b>Entropy</b> looks right.\n\u202e\u05e9\u05dc\u05d5\u05dd"
# Part 2 is not in a length yet.
GROWN = {
    "lengths": [{"samples": 4, "tokens": 60, "shards": 1}, {"samples": 8, "tokens": 110, "shards": 2}],
    "extended": [
        {"shards": 1, "began_at_s": 1.79e9, "ended_at_s": 1.79e9 + 400},
        {"shards": 2, "began_at_s": None, "ended_at_s": 1.7905e9},
    ],
}


def make_site(folder: Path) -> Path:
    """Write it all; returns the root. Part 1 of `damaged` is one byte short."""
    root = folder / "root"
    subprocess.run([sys.executable, str(SAMPLE_DATASET), str(root / "sample")], check=True, timeout=120)
    write_example_dataset(root / "damaged", info=example_dataset_info(samples=20))
    write_example_dataset(root / "growing", info=example_dataset_info(samples=40), parts=[0, 1, 2, 4])
    write_example_dataset(root / "quantized", info=example_dataset_info(samples=8, hidden_dtype="int8"))
    many_shards(root / "many", 120)
    write_tokens(root / "tokens", parts=[0, 1, 2])
    (root / "tokens" / "corpus.json").write_text(json.dumps(GROWN))
    noted(str(root / "sample"), NOTE, ("baseline", "round-3"), ())
    (root / "sample" / "corpus.json").write_text(json.dumps(CORPUS))
    short = root / "damaged" / "shards" / "part-000001.arrow"
    os.truncate(short, short.stat().st_size - 1)
    run = root / "runs" / "student"
    run.mkdir(parents=True)
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in _figures())
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _SAMPLES))
    noted(str(run), "The loss of stage distill is still falling.", ("baseline",), ())
    raw = (root / "sample" / "dataset.json").read_bytes()
    (run / "run.json").write_text(json.dumps({**_SETTINGS, "shards_0_dataset": self_hash(raw)}))
    (run / "align").mkdir()
    (run / "align" / "stage.json").write_text(json.dumps({"steps": 400, "loss_mean": 0.61}))
    now = time.time()
    capture = heartbeat("capture", at_s=now, done=4, total=10, tokens=960, tokens_per_s=1234.5, left_s=3725.0)
    (root / "growing" / "heartbeat-0.json").write_bytes(capture.to_bytes())
    ended = heartbeat("training", at_s=now - 2880, state="finished", done=400, total=400, stage="distill")
    (run / "heartbeat-0.json").write_bytes(ended.to_bytes())
    other = root / "runs" / "other"
    other.mkdir()
    with (other / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({**line, "loss": 1.2 * line["loss"]}) + "\n" for line in _figures()[:25])
    (other / "run.json").write_text(json.dumps({**_SETTINGS, "learning_rate": 0.0002}))
    silent = heartbeat("training", at_s=now - 600, done=240, total=400, stage="align", errors=1, message="disk full")
    (other / "heartbeat-0.json").write_bytes(silent.to_bytes())
    return root


def heartbeat(kind: str, **figures: object) -> Heartbeat:
    """What a process says; `figures` override that it runs since an hour."""
    unit = "shards" if kind == "capture" else "steps"
    said = {"kind": kind, "unit": unit, "state": "running", "host": "node-1", "every_s": 5.0, "began_at_s": 1.8e9}
    return Heartbeat.model_validate({**said, **figures})


def _figures() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for stage, first, last in (("align", 1.4, 0.32), ("distill", 2.1, 0.04)):
        for step in range(0, 400, 10):
            loss = last + (first - last) * math.exp(-step / 90) * (1 + 0.06 * math.sin(step))
            line: dict[str, Any] = {
                "stage": stage,
                "step": step,
                "tokens": 4096 * step,
                "loss": loss,
                "tokens_per_s": 12e3 + 9 * step,
            }
            if stage == "align":
                line |= {f"relative_error_{layer}": loss * (1 + 0.1 * layer) for layer in range(8)}
            lines.append({**line, "eval_kl": loss * 1.1} if stage == "distill" and step % 50 == 0 else line)
    return lines


_SETTINGS = {
    "preset": "arwkv",
    "stage": "auto",
    "learning_rate": 0.001,
    "seed": 0,
    "shards_0_dataset": "0123abcd",
    "samples_per_step": 8,
    "base": {"name": "Qwen2.5-0.5B", "checkpoint": "89ab4567"},
}

_SAMPLES = [
    {
        "prompt": "def __init__(self, ",
        "teacher": "name, value=None):\n        self.name = name\n        self.value = value",
        "student": "name, value):\n        self.name = name\n        self._value = value",
        "stage": "distill",
        "step": 390,
    },
    {
        "prompt": "import os\nimport sys\n",
        "teacher": "import types\n\n__all__ = ['Chart']",
        "student": "import time\n\n__all__ = []",
    },
]
