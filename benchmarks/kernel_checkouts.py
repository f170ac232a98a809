"""The compiled recurrence and time mixers of this checkout and of another, as training on a CPU runs them, in turns.

    git worktree add --detach OTHER COMMIT
    OMP_NUM_THREADS=1 python benchmarks/kernel_checkouts.py --other OTHER [--lengths 1024 8192] [--rounds 9]

For the recurrence each checkout has a process of its own that stays: inputs of B=1, H heads of 64, fp32, forward and
backward. A process keeps the memory of freed tensors where its checkout's `student train` does. Whole mixers, with
`--fuse`, in bf16 where the processor multiplies it natively, else in fp32. Ratios are medians of those within a round.
"""

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arwkv_kernels.precision import machine, multiplies_bf16
from arwkv_store.commands.command_line import main
from checkouts import environment_of
from figures import print_table, write_json

HERE = Path(__file__).parent.parent
WORKER = """
import sys, time
import torch
from arwkv_kernels import wkv7
try:
    from arwkv_kernels.memory import keep_freed_memory
except ImportError:
    pass
else:
    keep_freed_memory()
torch.set_num_threads(1)
for line in sys.stdin:
    T, H, D = map(int, line.split())
    torch.manual_seed(0)
    r, k, v, a = (torch.randn(1, T, H, D) for _ in range(4))
    kk = torch.nn.functional.normalize(k, dim=-1)
    w, rate = -0.6 * torch.sigmoid(torch.randn(1, T, H, D)), torch.sigmoid(a)
    inputs = [x.clone().requires_grad_() for x in (r, w, k, v, -kk, kk * rate)]
    for _ in range(3):
        forward = time.perf_counter()
        o, _ = wkv7(*inputs)
        backward = time.perf_counter()
        o.backward(o.detach())
        end = time.perf_counter()
        for x in inputs:
            x.grad = None
    print(backward - forward, end - backward, flush=True)
"""

# Earlier checkouts time mixers under autocast to bf16 alone.
IN_FP32 = """
import functools, runpy, sys
sys.path[0] = "benchmarks"
import torch
torch.autocast = functools.partial(torch.autocast, enabled=False)
runpy.run_path("benchmarks/kernels.py", run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class CheckoutsConfig:
    """Time the compiled recurrence and time mixers of two checkouts in turns."""

    other: Path
    """The other checkout's folder."""
    lengths: tuple[int, ...] = (1024, 8192)
    """Tokens of a sequence."""
    heads: int = 4
    """Heads of 64."""
    rounds: int = 9
    """Rounds in which the two take turns; three passes in each, of which the last counts."""
    mixer_rounds: int = 3
    """The same of whole mixers, half a minute each."""
    json_out: Path | None = None
    """Write the figures to this file."""
    json: bool = False
    """Print the figures as one JSON document."""


def measure(config: CheckoutsConfig) -> dict[str, Any]:
    """One row a length and checkout, in ns per token and head."""
    rows = []
    with _worker(config.other.resolve()) as other, _worker(HERE) as here:
        for length in config.lengths:
            times: dict[str, list[tuple[float, float]]] = {"other": [], "here": []}
            for _ in range(config.rounds):
                for name, process in (("other", other), ("here", here)):
                    times[name].append(_pass(process, length, config.heads))
            for name, found in times.items():
                pairs = zip(times["other"], found, strict=True)
                scale = 1e9 / (length * config.heads)
                rows.append(
                    {
                        "tokens": length,
                        "checkout": name,
                        "forward": round(scale * statistics.median(one for one, _ in found)),
                        "backward": round(scale * statistics.median(one for _, one in found)),
                        "together": round(scale * statistics.median(map(sum, found))),
                        "speed-up": round(statistics.median(sum(theirs) / sum(own) for theirs, own in pairs), 2),
                    }
                )
    print_table(f"compiled wkv7, H={config.heads} D=64 fp32, ns per token and head", rows)
    mixers = _mixers(config)
    print_table("time mixer with --fuse, B=4 T=512 C=512, forward + backward", mixers)
    results = {"machine": machine(), "rows": rows, "mixers": mixers}
    write_json(config.json_out, results)
    return results


def _mixers(config: CheckoutsConfig) -> list[dict[str, Any]]:
    """One row a preset."""
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(config.mixer_rounds):
        theirs, own = (_mixers_of(checkout) for checkout in (config.other.resolve(), HERE))
        for preset, milliseconds in own.items():
            times.setdefault(preset, []).append((theirs[preset], milliseconds))
    return [
        {
            "preset": preset,
            "other, ms": round(statistics.median(other for other, _ in pairs), 1),
            "here, ms": round(statistics.median(here for _, here in pairs), 1),
            "speed-up": round(statistics.median(other / here for other, here in pairs), 2),
        }
        for preset, pairs in times.items()
    ]


def _mixers_of(checkout: Path) -> dict[str, float]:
    """Milliseconds of each preset's compiled mixer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        flags = ["--only", "time mixer, B=4", "--json-out", str(file)]
        script = ["benchmarks/kernels.py"] if multiplies_bf16() else ["-c", IN_FP32]
        subprocess.run(
            [sys.executable, *script, *flags],
            env=_environment(checkout), cwd=checkout, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        (rows,) = (rows for title, rows in json.loads(file.read_text()).items() if title.startswith("time mixer"))
    return {row["preset"]: row["compiled ms"] for row in rows}


def _environment(checkout: Path) -> dict[str, str]:
    return environment_of(checkout) | {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def _worker(checkout: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that times what it is asked for with the checkout's kernels."""
    words = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(checkout), text=True, cwd="/"
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _pass(process: subprocess.Popen[str], length: int, heads: int) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{length} {heads} 64\n")
    process.stdin.flush()
    forward, backward = map(float, process.stdout.readline().split())
    return forward, backward


if __name__ == "__main__":
    main("kernel_checkouts.py", "The compiled recurrence of two checkouts, in turns.", measure)
