"""What training costs: stage 1 from tokens and from stored outputs, its memory, and how long a student takes to start.

    OMP_NUM_THREADS=1 python benchmarks/training.py --out /tmp/training [--only align] [--checkout OTHER_CHECKOUT]
    python benchmarks/training.py --out /tmp/training --only step --width 2048 --batch 32  # 310M, for a GPU

Bases are made with random weights in the shape of the demo's teacher and of Qwen2.5-0.5B. Contestants take turns, and
ratios are medians of those within a round. With `--checkout`, the start of the code there and its steps are measured
too. A step is one of `student train`. A start is a process of its own; its peak includes mapped files, but not what the
process held before it opened the checkpoint.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from arwkv_kernels.memory import keep_freed_memory
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.losses.objectives import align_loss_L
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.training.align import align_losses, align_outputs
from arwkv_student.training.parameters import choose_trained
from checkouts import environment_of
from figures import Rows, print_table, race, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from process_memory import allocated_peak_bytes

TESTS = sys.path[0]


DEMO = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2}
HALF_B = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
START = """
import json, sys, time
import torch, transformers
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
sys.path.append(sys.argv[2])
from process_memory import forget_peak, peak_bytes
before, began = forget_peak(), time.monotonic()
base = open_base(sys.argv[1])
base.weights_hash
hashed = time.monotonic()
transformers.set_seed(0)
student = convert(base, student_config(base, "arwkv")).model
ended = time.monotonic()
found = {"hash, s": hashed - began, "conversion, s": ended - hashed, "peak": peak_bytes() - before}
print(json.dumps(found | {"weights": sum(parameter.nbytes for parameter in student.parameters())}))
"""

SHARDS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from teacher_shards import documents, make_shards
base, text, out, samples, tokens = sys.argv[2:]
length, limit = int(tokens), int(samples)
make_shards(Path(base), documents(Path(text)), Path(out), max_length=length, top_k=64, hidden="none", limit=limit)
"""
STEPS, UNCOUNTED_STEPS, STEP_TOKENS = 14, 6, 512


def made_base(folder: Path, shape: Mapping[str, int], layers: int, vocab_size: int = 1024) -> BaseCheckpoint:
    """A checkpoint in bf16 with random weights."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        rope = {"rope_type": "default", "rope_theta": 1e6}
        config = Qwen2Config(
            vocab_size=vocab_size, num_hidden_layers=layers, tie_word_embeddings=True, rope_parameters=rope, **shape
        )
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return open_base(str(folder))


class Stage1:
    """One batch of stage 1: whole graph or a layer at a time, from stored outputs or from tokens."""

    def __init__(self, base: BaseCheckpoint, preset: str, batch: int, tokens: int, bf16: bool) -> None:
        self.model: ArwkvForCausalLM = convert(base, student_config(base, preset)).model
        choose_trained(self.model, "time-mix")
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.attention, self.bf16 = BaseAttention(base, self.model.config.time_mix_layers, dtype), bf16
        ids = torch.randint(1024, (batch, tokens), generator=torch.Generator().manual_seed(0))
        self.tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = align_outputs(self.model, self.tokens, self.attention)[1]
        self.stored = self.tokens | {"attention": torch.stack(outputs).to(torch.bfloat16)}

    def _backward(self, loss: Callable[[], Tensor]) -> None:
        self.model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            total = loss()
        total.backward()

    def whole_graph(self) -> None:
        mask = self.stored["attention_mask"]
        self._backward(lambda: align_loss_L(*align_outputs(self.model, self.stored), mask).mean())

    def from_stored(self) -> None:
        self._backward(lambda: align_losses(self.model, self.stored, None, self._loss).mean())

    def from_tokens(self) -> None:
        self._backward(lambda: align_losses(self.model, self.tokens, self.attention, self._loss).mean())

    def _loss(self, _layer: int, mixed: Tensor, attention: Tensor) -> Tensor:
        return align_loss_L([mixed], [attention], self.tokens["attention_mask"])[0]


def align_memory(arguments: argparse.Namespace) -> Rows:
    """Peaks of 2 and 4 layers; 24 follow from the growth between them."""
    rows = []
    for preset in ("arwkv", "rad-rwkv7"):
        peaks: dict[str, list[float]] = {}
        for layers in (2, 4):
            stage = Stage1(made_base(arguments.out / f"memory{layers}", HALF_B, layers), preset, 1, 2048, bf16=True)
            runs = {"all layers at once": stage.whole_graph, "stored": stage.from_stored, "tokens": stage.from_tokens}
            for name, run in runs.items():
                stage.model.zero_grad(set_to_none=True)
                peaks.setdefault(name, []).append(allocated_peak_bytes(run) / 2**20)
        whole_24 = peaks["all layers at once"][1] + 10 * (
            peaks["all layers at once"][1] - peaks["all layers at once"][0]
        )
        for name, (two, four) in peaks.items():
            of_24 = four + 10 * (four - two)
            row = {"stage 1": f"{preset}, {name}", "2 layers, MiB": two, "4 layers, MiB": four, "24 layers, MiB": of_24}
            rows.append(row | {"24 layers": of_24 / whole_24})
    return rows


def align_time(arguments: argparse.Namespace) -> Rows:
    """Forward and backward pass of a batch that is in memory; the stored outputs' reading is not counted."""
    keep_freed_memory()  # as `student train` does
    rows = []
    shapes = {
        "the demo's, 4 layers, B=32 T=128": (DEMO, 4, 32, 128),
        "0.5B's, 2 layers, B=4 T=512": (HALF_B, 2, 4, 512),
        "0.5B's, 2 layers, B=1 T=2048": (HALF_B, 2, 1, 2048),
    }
    for name, (shape, layers, batch, tokens) in shapes.items():
        for preset in ("arwkv", "rad-rwkv7"):
            base = made_base(arguments.out / f"time{shape['hidden_size']}", shape, layers)
            stage = Stage1(base, preset, batch, tokens, bf16=True)
            runs = {"all": stage.whole_graph, "stored": stage.from_stored, "tokens": stage.from_tokens}
            times = race(runs, arguments.rounds)

            def ratio(one: str, other: str, times: dict[str, list[float]] = times) -> float:
                return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

            rows.append(
                {
                    "stage 1": f"{name}, {preset}",
                    "stored, ms": 1e3 * statistics.median(times["stored"]),
                    "tokens, ms": 1e3 * statistics.median(times["tokens"]),
                    "tokens / stored": ratio("tokens", "stored"),
                    "a layer at a time / all at once": ratio("stored", "all"),
                }
            )
    return rows


def starts(arguments: argparse.Namespace) -> Rows:
    """Qwen2.5-0.5B's shape, a checkpoint of 1 GB."""
    made_base(arguments.out / "start", HALF_B, 24, 151_936)
    own = Path(__file__).parents[1]
    contestants = {"here": own} | ({"there": arguments.checkout.resolve()} if arguments.checkout else {})
    rows: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        for name, checkout in contestants.items():
            found = _start(arguments.out / "start", checkout, arguments.out / "cache")
            rows.append({"start": name, **found, "peak / weights": found["peak"] / found["weights"]})
    return rows


def _start(checkpoint: Path, checkout: Path, cache: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(_python(checkout, cache, "-c", START, str(checkpoint), TESTS))
    return figures


def _python(checkout: Path, cache: Path, *words: str) -> str:
    """What Python prints with the packages of a checkout."""
    environment = environment_of(checkout) | {"ARWKV_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def steps(arguments: argparse.Namespace) -> Rows:
    """Samples of 512 tokens, the shards written by the other checkout, if there is one; and the share of the rate of
    this machine's matrix products, by the operations that `student plan` counts."""
    own, cache = Path(__file__).parents[1], arguments.out / "cache"
    out = arguments.out / f"steps-{arguments.width}-{arguments.layers}-{arguments.batch}"
    other = None if arguments.checkout is None else arguments.checkout.resolve()
    base, shards = out / "base", out / "shards"
    if not shards.exists():
        shape = ("--hidden-size", str(arguments.width), "--layers", str(arguments.layers), "--steps", "1")
        _python(own, cache, str(own / "examples" / "teacher.py"), "--out", str(base), *shape)
        text = out / "text.jsonl"
        text.write_text(json.dumps({"text": " ".join(str(number) for number in range(20_000))}) + "\n")
        tests, size = (other or own) / "tests" / "student", (str(STEPS * arguments.batch), str(STEP_TOKENS))
        _python(other or own, cache, "-c", SHARDS, str(tests), str(base), str(text), str(shards), *size)
    checkouts = {"here": own} | ({"there": other} if other else {})
    speeds: dict[str, list[float]] = {}
    for round_number in range(arguments.rounds):
        for place, checkout in checkouts.items():
            for flags in ([], ["--fuse"]):
                run = out / f"run-{round_number}-{place}{''.join(flags)}"
                shutil.rmtree(run, ignore_errors=True)
                words = ["train", "--stage", "distill", "--shards", str(shards), "--base", str(base), "--out", str(run)]
                length = [
                    "--steps",
                    str(STEPS),
                    "--batch-size",
                    str(arguments.batch),
                    "--log-every",
                    "1",
                    "--workers",
                    "0",
                ]
                _python(checkout, cache, "-m", "arwkv_student.cli", *words, *length, *flags)
                lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                timed = [line["tokens_per_s"] for line in lines if line.get("step", 0) > UNCOUNTED_STEPS]
                speeds.setdefault(" ".join([place, *flags]), []).append(statistics.median(timed))
    first = speeds["there" if other else "here"]
    planned = _python(
        own, cache, "-m", "arwkv_student.cli", "plan", "--base", str(base), "--context", str(STEP_TOKENS), "--json"
    )
    rate_of_one = json.loads(planned)["distill"]["operations_per_token"] / _products_per_s()
    return [
        {
            "student train": name,
            "tokens/s": statistics.median(found),
            "of the rate": statistics.median(found) * rate_of_one,
            "speed-up": statistics.median(a / b for a, b in zip(found, first, strict=True)),
        }
        for name, found in speeds.items()
    ]


def _products_per_s() -> float:
    """Operations per second of a large matrix product in bf16 on this machine's accelerator, or its processor."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    size = 2048 if device.type == "cpu" else 8192
    x = torch.randn(size, size, dtype=torch.bfloat16, device=device)

    def product() -> None:
        _ = x @ x
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return float(2 * size**3 / statistics.median(race({"product": product}, 5)["product"]))


TABLES = {"align, memory": align_memory, "align, time": align_time, "step": steps, "start": starts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bases, 1.3 GB")
    parser.add_argument("--only", default="", help="the tables whose titles contain this")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contestants take turns")
    parser.add_argument("--width", type=int, default=512, help="of the student whose steps are measured")
    parser.add_argument("--layers", type=int, default=6, help="of that student")
    parser.add_argument("--batch", type=int, default=4, help="samples of 512 tokens of its steps")
    parser.add_argument("--checkout", type=Path, help="another checkout whose start and steps are measured too")
    parser.add_argument("--json-out", type=Path, help="write the tables' rows there too")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for title, measure in TABLES.items():
        if arguments.only in title:
            results[title] = measure(arguments)
            print_table(title, results[title])
    write_json(arguments.json_out, results)


if __name__ == "__main__":
    main()
