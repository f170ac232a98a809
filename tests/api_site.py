"""What the page's tests look at: a readable dataset, a large and a damaged one, and a run under way."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from api_many import many_shards
from store_examples import example_dataset_info, write_example_dataset

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


def make_site(folder: Path) -> Path:
    """Write it all; returns the root. Part 1 of `damaged` is one byte short."""
    root = folder / "root"
    subprocess.run([sys.executable, str(SAMPLE_DATASET), str(root / "sample")], check=True, timeout=120)
    write_example_dataset(root / "damaged", info=example_dataset_info(samples=20))
    write_example_dataset(root / "growing", info=example_dataset_info(samples=40), parts=[0, 1, 2, 4])
    write_example_dataset(root / "quantized", info=example_dataset_info(samples=8, hidden_dtype="int8"))
    many_shards(root / "many", 120)
    (root / "sample" / "corpus.json").write_text(json.dumps(CORPUS))
    short = root / "damaged" / "shards" / "part-000001.arrow"
    os.truncate(short, short.stat().st_size - 1)
    run = root / "runs" / "student"
    run.mkdir(parents=True)
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in _figures())
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _SAMPLES))
    return root


def _figures() -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for stage, first, last in (("align", 1.4, 0.32), ("distill", 2.1, 0.04)):
        for step in range(0, 400, 10):
            loss = last + (first - last) * math.exp(-step / 90) * (1 + 0.06 * math.sin(step))
            line = {"stage": stage, "step": step, "tokens": 4096 * step, "loss": loss, "tokens_per_s": 12e3 + 9 * step}
            lines.append({**line, "eval_kl": loss * 1.1} if stage == "distill" and step % 50 == 0 else line)
    return lines


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
