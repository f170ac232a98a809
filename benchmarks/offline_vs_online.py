"""A step of stage 2 from shards against the same step with the teacher in the loop.

    python benchmarks/offline_vs_online.py --shards runs/demo/shards/train

Student, batch, optimizer and precision are the same in every arm. Live arms read the tokens alone from the same shards,
run a teacher of 1, 4 or 16 times the student's parameters over them, frozen and held in bf16, and take the KL over the
whole vocabulary. Arms take turns, a step each, in one process, after an epoch of loading: what an epoch costs, every
byte verified, is said apart. On a shared machine, compare processor time; on a GPU (`--device cuda --scale 4
--batch-size 64`) wall time. Peak memory is that of a process of its own for each arm, above what it held before models
were made (on a GPU: of the device). Weights are random: a step's time does not depend on them.
"""

import dataclasses
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arwkv_store.commands.command_line import main
from arwkv_student.model.time_mix_options import Preset

# Width of the student, and of live teachers of 1, 4 and 16 times its parameters; all of the same depth.
STUDENT_WIDTH = 512
TEACHER_WIDTHS = {"1": 576, "4": 1152, "16": 2304}
OFFLINE = "offline"


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """Compare steps from shards with steps that run the teacher."""

    shards: str
    """Dataset with logits."""
    preset: Preset = "arwkv"
    """The student."""
    batch_size: int = 8
    """Samples of a step."""
    rounds: int = 10
    """Steps of each arm, after two to warm up."""
    device: str = "cpu"
    """Where models and batches are."""
    scale: int = 1
    """All widths, times this."""
    layers: int = 6
    """Layers of every model."""
    measure_memory_of: str | None = None
    """Run two steps of one arm alone and print its peak memory; the benchmark calls itself with this."""
    json: bool = False
    """Print the figures as one JSON document."""


def compare(config: OfflineConfig) -> dict[str, Any]:
    """Time the arms in turns, measure each one's memory, print a table in Markdown."""
    if config.measure_memory_of is not None:
        print(_peak_mb(config, config.measure_memory_of))
        return {}
    loading_s = _loading_s(config)
    student = Student.made(config)
    arms = {name: _arm(config, name, student) for name in (OFFLINE, *TEACHER_WIDTHS)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for turn in range(config.rounds + 2):
        for name, step in arms.items():
            before = _wall_and_processor_s()
            step()
            _wait(config)
            took = [after - start for after, start in zip(_wall_and_processor_s(), before, strict=True)]
            if turn > 1:
                seconds[name].append((took[0], took[1]))
            print(f"round {turn}: {name}: {took[0]:.2f} s, processor {took[1]:.2f} s", file=sys.stderr)
    result: dict[str, Any] = {"loading_processor_s": loading_s, "arms": {}}
    for name in arms:
        wall, processor = (
            [other[clock] / own[clock] for other, own in zip(seconds[name], seconds[OFFLINE], strict=True)]
            for clock in (0, 1)
        )
        result["arms"][name] = {
            "step_s": statistics.median(wall_s for wall_s, _ in seconds[name]),
            "step_processor_s": statistics.median(processor_s for _, processor_s in seconds[name]),
            "wall_ratio": statistics.median(wall),
            "ratio": statistics.median(processor),
            "lowest": min(processor),
            "highest": max(processor),
            "peak_mb": _in_its_own_process(config, name),
        }
    if not config.json:
        _print(result)
    return result


def _wait(config: OfflineConfig) -> None:
    if config.device != "cpu":
        import torch

        torch.cuda.synchronize()


def _wall_and_processor_s() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _print(result: dict[str, Any]) -> None:
    print(
        "| arm | step, processor s | over offline (lowest, highest) | step, s | over offline | peak memory, MB |\n"
        "|---|---|---|---|---|---|"
    )
    for name, figures in result["arms"].items():
        title = "from shards" if name == OFFLINE else f"live teacher, {name}×"
        shown = (
            "{step_processor_s:.2f} | {ratio:.2f} ({lowest:.2f}, {highest:.2f}) | {step_s:.2f} | {wall_ratio:.2f} | "
            "{peak_mb:.0f} |"
        )
        print(f"| {title} | {shown.format(**figures)}")
    share = result["loading_processor_s"] / result["arms"][OFFLINE]["step_processor_s"]
    print(
        "\nReading, verifying, decoding and collating a batch, mean over an epoch, first touch of every part in it: "
        f"{result['loading_processor_s'] * 1e3:.1f} ms of processor time, {share:.1%} of a step"
    )


def _loading_s(config: OfflineConfig) -> float:
    """Processor seconds to load a batch, in the training process itself, over an epoch in the order of training."""
    from arwkv_store import open_dataset
    from arwkv_student.data.collate import OrderSampler, collate

    started = time.process_time()
    dataset = open_dataset(config.shards, columns=["logits"])
    order = list(OrderSampler(dataset.shard_rows, len(dataset), 0))
    batches = range(0, len(order) - config.batch_size + 1, config.batch_size)
    for first in batches:
        collate([dataset[index] for index in order[first : first + config.batch_size]])
    return (time.process_time() - started) / len(batches)


@dataclasses.dataclass(frozen=True)
class Student:
    """What all arms train."""

    model: Any
    optimizer: Any

    @classmethod
    def made(cls, config: OfflineConfig) -> "Student":
        """Converted from a random base, with the optimizer of `student train`."""
        import torch

        from arwkv_store import open_dataset
        from arwkv_student.bases.checkpoint import open_base
        from arwkv_student.bases.convert import untrained_student
        from arwkv_student.settings import TrainSettings
        from arwkv_student.training.parameters import choose_trained

        rows = open_dataset(config.shards, columns=[]).info.vocab_size_padded
        with tempfile.TemporaryDirectory() as folder:
            _qwen2(config, rows, STUDENT_WIDTH).save_pretrained(folder)
            model = untrained_student(open_base(folder), TrainSettings(preset=config.preset), 0).to(config.device)
        choose_trained(model, "preset")
        _say_size("student", model)
        return cls(model, torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True))


def _arm(config: OfflineConfig, name: str, student: Student) -> Callable[[], None]:
    """A function that makes one step."""
    import torch

    from arwkv_store import open_dataset
    from arwkv_student.data.collate import OrderSampler, collate
    from arwkv_student.losses.objectives import Objective, distill_loss

    dataset = open_dataset(config.shards, columns=["logits"] if name == OFFLINE else [])
    vocab_size = dataset.info.tokenizer.vocab_size
    order = iter(OrderSampler(dataset.shard_rows, 1_000_000, 0))
    teacher = None
    if name != OFFLINE:
        teacher = _qwen2(config, dataset.info.vocab_size_padded, TEACHER_WIDTHS[name], "bfloat16")
        teacher = teacher.eval().requires_grad_(False)
        _say_size(f"teacher, {name}×", teacher)

    def step() -> None:
        batch = collate([dataset[next(order)] for _ in range(config.batch_size)])
        batch = {name: x.to(config.device) for name, x in batch.items()}
        with torch.autocast(config.device, torch.bfloat16):
            if teacher is None:
                loss = distill_loss(batch, Objective(vocab_size, compute_dtype=torch.bfloat16))
            else:
                with torch.no_grad():
                    live = teacher(batch["input_ids"], use_cache=False).logits
                loss = live_kl(live, batch["predicts"], vocab_size)
            student.model(input_ids=batch["input_ids"], head_loss=loss).loss.backward()
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        student.optimizer.step()
        student.optimizer.zero_grad()

    return step


def _say_size(what: str, model: Any) -> None:
    print(f"{what}: {sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)


def _qwen2(config: OfflineConfig, rows: int, width: int, dtype: str = "float32") -> Any:  # transformers is untyped
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    width *= config.scale
    shape = Qwen2Config(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    with torch.device(config.device):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def live_kl(teacher_BTV: Any, predicts_BT: Any, vocab_size: int) -> Any:
    """KL(teacher ‖ student) over the whole vocabulary, as recipes with a live teacher take it."""
    import torch
    from torch.nn.functional import kl_div

    def loss(hidden_BTC: torch.Tensor, weight_VC: torch.Tensor) -> torch.Tensor:
        log_q = (hidden_BTC[predicts_BT] @ weight_VC[:vocab_size].T).float().log_softmax(-1)
        log_p = teacher_BTV[predicts_BT][:, :vocab_size].float().log_softmax(-1)
        return kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    return loss


def _in_its_own_process(config: OfflineConfig, name: str) -> float:
    flags = [
        word
        for field, value in dataclasses.asdict(config).items()
        if field not in ("json", "measure_memory_of")
        for word in (f"--{field.replace('_', '-')}", str(value))
    ]
    command = [sys.executable, __file__, *flags, "--measure-memory-of", name]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def _peak_mb(config: OfflineConfig, name: str) -> float:
    # What is loaded before the models is not theirs.
    for module in ("torch", "transformers.models.qwen2.modeling_qwen2", "arwkv_student.training.pipeline"):
        importlib.import_module(module)
    before_mb = _peak_so_far_mb(config)
    step = _arm(config, name, Student.made(config))
    step()
    step()
    return _peak_so_far_mb(config) - before_mb


def _peak_so_far_mb(config: OfflineConfig) -> float:
    """The device's; of a CPU VmHWM: unlike ru_maxrss, it begins anew with the process."""
    if config.device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


if __name__ == "__main__":
    description = "Compare steps of stage 2 from shards with steps that run the teacher."
    main("offline_vs_online", description, {"run": compare}, ["run", *sys.argv[1:]])
