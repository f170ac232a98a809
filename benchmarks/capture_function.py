"""What the capture function costs on random logits, without vLLM: against torch's own calls, and one read of them.

On a GPU also what the copies of all layers' hidden states to main memory add to a prefill of the size of a 7B's.

python benchmarks/capture_function.py [--device cuda] [--tokens 8192] [--vocabulary 152064] [--json-out FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from arwkv_producer.numerics.distribution import summarize
from arwkv_producer.teacher.capture import CaptureSettings
from arwkv_producer.teacher.handover import HostCopies

TOP_K = 64
LAYERS, WIDTH = 28, 3584


def main() -> None:
    """Contestants take turns; prints milliseconds per 1,000 tokens and the ratio to one read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=152_064)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    rows = min(CaptureSettings(TOP_K, options.vocabulary).logits_rows(options.vocabulary, on_cpu), options.tokens)
    torch.manual_seed(0)
    logits_TV = torch.randn(rows, options.vocabulary, device=options.device) * 3
    next_ids_T = torch.randint(0, options.vocabulary, (rows,), device=options.device)
    contestants: dict[str, Callable[[torch.Tensor], object]] = {
        "read once (amax)": lambda logits: logits.amax(-1),
        "topk + logsumexp": lambda logits: (logits.topk(TOP_K, dim=-1), logits.logsumexp(-1)),
        "capture": lambda logits: summarize(logits, TOP_K, next_ids_T),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    chunks = -(-options.tokens // rows)
    for _ in range(options.rounds + 1):
        for name, contestant in contestants.items():
            seconds = _seconds(contestant, logits_TV, chunks)
            taken[name].append(seconds / (chunks * rows) * 1e6)
    ms = {name: statistics.median(times[1:]) for name, times in taken.items()}  # the first round compiled
    print(f"{options.device}, [{options.tokens}, {options.vocabulary}], {rows} rows at a time, top {TOP_K}")
    print("| | ms per 1k tokens | of one read |\n|---|---|---|")
    for name, value in ms.items():
        print(f"| {name} | {value:,.2f} | {value / ms['read once (amax)']:.1f}× |")
    hidden = {} if on_cpu else hidden_states(options.tokens, options.rounds)
    for name, value in hidden.items():
        print(f"{LAYERS} layers of width {WIDTH}, {name}: {value:,.2f} ms per 1k tokens")
    if options.json_out:
        found = {"device": options.device, "rows": rows, "ms_per_1k_tokens": ms, "hidden_states": hidden}
        options.json_out.write_text(json.dumps(found))


def hidden_states(tokens: int, rounds: int) -> dict[str, float]:
    """Milliseconds per 1,000 tokens of two matrix products a layer, whose outputs are kept or not."""
    weights = [torch.randn(WIDTH, 5 * WIDTH, device="cuda", dtype=torch.bfloat16) / 60 for _ in range(2)]
    x_TC = torch.randn(tokens, WIDTH, device="cuda", dtype=torch.bfloat16)

    def prefill(keep: Callable[[torch.Tensor], torch.Tensor] | None) -> list[torch.Tensor]:
        kept, y_TC = [], x_TC
        for _ in range(LAYERS):
            y_TC = (y_TC @ weights[0]) @ weights[1].T
            if keep is not None:
                kept.append(keep(y_TC.clone()))
        return kept

    copies = HostCopies()
    runs: dict[str, Callable[[], object]] = {
        "nothing kept": lambda: prefill(None),
        "copied at the end, the host waiting": lambda: [state.to("cpu") for state in prefill(lambda state: state)],
        "copied beside the computing": lambda: (prefill(copies.start), copies.wait()),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            torch.cuda.synchronize()
            taken[name].append((time.perf_counter() - began) / tokens * 1e6)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def _seconds(contestant: Callable[[torch.Tensor], object], logits_TV: torch.Tensor, chunks: int) -> float:
    """Of all chunks, one after another; on a GPU the host does not wait between them, as vLLM's does not."""
    if not logits_TV.is_cuda:
        return sum(_once(contestant, logits_TV.clone()) for _ in range(chunks))  # the capture uses its logits up
    began = time.perf_counter()
    for _ in range(chunks):
        contestant(logits_TV)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _once(contestant: Callable[[torch.Tensor], object], logits_TV: torch.Tensor) -> float:
    began = time.perf_counter()
    contestant(logits_TV)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
