"""What a training step on a CPU gains where the C library keeps the memory of freed tensors.

    python benchmarks/freed_memory.py [--hidden-size 512] [--layers 6] [--rounds 3] [--json-out FILE]

A student with random weights takes some steps of AdamW on random tokens, in a process of its own for each setting; the
settings take turns. CPU time depends less on other work than wall time does; a ratio is the median over rounds.
"""

import dataclasses
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from arwkv_kernels.memory import keep_freed_memory
from arwkv_kernels.precision import compute_dtype, machine
from arwkv_store.commands.command_line import main
from figures import print_table, write_json

STEPS = 5
SETTINGS = ("returned", "kept")


@dataclasses.dataclass(frozen=True)
class FreedMemoryConfig:
    """CPU time, page faults and memory of a training step, with freed memory returned to the system or kept."""

    hidden_size: int = 512
    """Model width; heads of 64."""
    layers: int = 6
    """Layers."""
    batch_size: int = 4
    """Samples of a step."""
    length: int = 512
    """Tokens of a sample."""
    rounds: int = 3
    """Rounds in which the settings take turns."""
    json_out: Path | None = None
    """Write the figures to this file."""
    json: bool = False
    """Print the figures as one JSON document."""


def measure(config: FreedMemoryConfig) -> dict[str, Any]:
    """Train in every setting and round; one row a setting."""
    context = multiprocessing.get_context("spawn")
    measured: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
    for _ in range(config.rounds):
        for setting in SETTINGS:
            with ProcessPoolExecutor(1, mp_context=context) as process:
                measured[setting].append(process.submit(_train, config, setting == "kept").result())
    rows = []
    for setting, rounds in measured.items():
        pairs = zip(measured["returned"], rounds, strict=True)
        row = {name: statistics.median(entry[name] for entry in rounds) for name in rounds[0]}
        ratio = statistics.median(kept["CPU s a step"] / before["CPU s a step"] for before, kept in pairs)
        rows.append({"freed memory is": setting, **row, "CPU against returned": ratio})
    print_table(f"training step, {config.batch_size} x {config.length} tokens, C={config.hidden_size}", rows)
    results = {"machine": machine(), "rows": rows}
    write_json(config.json_out, results)
    return results


def _train(config: FreedMemoryConfig, keep: bool) -> dict[str, float]:
    """Some steps; the first warms up. Medians of the others."""
    if keep and not keep_freed_memory():
        raise SystemExit("this C library cannot keep freed memory: no glibc")
    import torch

    from arwkv_student.model.configuration import ArwkvConfig
    from arwkv_student.model.modeling import ArwkvForCausalLM
    from arwkv_student.model.time_mix_options import BaseShape, preset_options

    heads = config.hidden_size // 64
    options = preset_options("rad-rwkv7", BaseShape(config.hidden_size, heads, max(1, heads // 4), 64))
    torch.manual_seed(0)
    model = ArwkvForCausalLM(
        ArwkvConfig(
            vocab_size=4096,
            hidden_size=config.hidden_size,
            intermediate_size=config.hidden_size * 8 // 3 // 64 * 64,
            num_hidden_layers=config.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            head_dim=64,
            time_mix=dataclasses.asdict(options),
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters())
    ids_BT = torch.randint(0, 4096, (config.batch_size, config.length))
    cpu, wall = [], []
    for _ in range(STEPS):
        started = time.process_time(), time.perf_counter()
        with torch.autocast("cpu", compute_dtype(device="cpu")):
            loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "CPU s a step": statistics.median(cpu[1:]),
        "wall s a step": statistics.median(wall[1:]),
        "system s in all": usage.ru_stime,
        "page faults": usage.ru_minflt,
        "peak MiB": usage.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main("freed_memory.py", "What a training step gains from keeping freed memory.", measure)
