"""The `student` command: each function calls one function and prints its result."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arwkv_store.commands import command_line
from arwkv_store.errors import UsageError
from arwkv_student.first_process import is_first_process
from arwkv_student.planning.settings import PlanSettings
from arwkv_student.rollout.settings import RolloutSettings
from arwkv_student.selection.settings import SelectSettings
from arwkv_student.settings import EvalSettings, ExportSettings, GenerateSettings, TrainSettings


def train(settings: TrainSettings) -> dict[str, Any] | None:
    """Train a student from shards: `align`, then `distill`. Of several processes, only the first prints."""
    _prepare()
    from arwkv_student.export.runtimes import runtimes
    from arwkv_student.training.pipeline import train as run

    result = run(settings)
    if not is_first_process():
        return None
    result["runtimes"] = runtimes(Path(result["out"]))
    if not settings.json:
        for stage, summary in result["stages"].items():
            held_out = summary.get("eval") or summary.get("held_out") or {}
            shown = "".join(
                f", held-out {name} {held_out[name]:.4f}" for name in ("kl", "eval_loss") if name in held_out
            )
            print(f"{stage}: {summary['tokens']:,} tokens in {summary['steps']:,} steps{shown}")
        print(f"student: {result['out']}")
        for name, reasons in result["runtimes"].items():
            print(f"runs in {name}" if not reasons else f"does not run in {name}: {'; '.join(reasons)}")
    return result


def plan(settings: PlanSettings) -> dict[str, Any]:
    """Print what a student costs: memory, hours and bytes of each stage."""
    _prepare()
    from arwkv_student.planning.plan import plan as run
    from arwkv_student.planning.plan import print_plan

    document = run(settings)
    if not settings.json:
        print_plan(document)
    return document


def select(settings: SelectSettings) -> dict[str, Any]:
    """Choose the layers that keep their attention, for --layers of `student train`."""
    _prepare()
    from arwkv_student.selection.select import select as run

    result = run(settings)
    if not settings.json:
        print(f"{settings.out}: layers {' '.join(map(str, result['kept']))} keep attention")
        for name, kl in result["kl"].items():
            print(f"KL, {name.replace('_', ' '):14} {kl:.4f}")
        print("tokens read: " + ", ".join(f"{count:,} by the {name}" for name, count in result["tokens"].items()))
    return result


def evaluate(settings: EvalSettings) -> dict[str, Any] | None:
    """Compare a student with its teacher on held-out shards, or run benchmarks. Of several processes, one prints."""
    _prepare()
    if settings.tasks is not None or settings.suite is not None:
        if settings.shards:
            raise UsageError("--shards cannot be combined with --tasks or --suite; run one evaluation at a time")
        return _long(settings) if settings.suite == "long" else _benchmarks(settings)
    from arwkv_student.bases.checkpoint import open_base
    from arwkv_student.bases.convert import untrained_student
    from arwkv_student.data.shards import open_shards, require_same_tokenizer
    from arwkv_student.evaluation.fidelity import evaluate as run
    from arwkv_student.model.loading import accelerator, computes_in_bf16, load_any_student, model_type

    if (settings.model is None) == (settings.base is None):
        raise UsageError("give either --model (a trained student) or --base (the untrained student of that base)")
    dataset = open_shards(settings.shards, ["logits", "token_stats"])
    if settings.model is not None:
        folder = Path(settings.model)
        model_type(folder)
        require_same_tokenizer(f"model {settings.model}", folder, dataset.info, settings.shards)
        model = load_any_student(folder)
    else:
        base = open_base(str(settings.base), any_family=settings.preset == "transformer")
        require_same_tokenizer(f"base {base.name}", base.folder, dataset.info, settings.shards)
        model = untrained_student(base, settings, settings.seed)
    figures = run(
        model.to(accelerator()),
        dataset,
        batch_size=settings.batch_size,
        samples=settings.samples,
        bf16=computes_in_bf16(settings.dtype),
    )
    if not settings.json:
        for name, value in figures.items():
            print(f"{name:20} {value:,.4f}" if isinstance(value, float) else f"{name:20} {value:,}")
    return {"model": settings.model or settings.base, "shards": settings.shards, **figures}


def _long(settings: EvalSettings) -> dict[str, Any]:
    if settings.tasks is not None:
        raise UsageError("--suite long cannot be combined with --tasks; run one evaluation at a time")
    from arwkv_student.long.evaluate import evaluate_long

    result = evaluate_long(settings)
    if not settings.json:
        for task, by_length in result["long"].items():
            for length, figures in by_length.items():
                print(f"{task:12} {int(length):8,} tokens  exact {figures['exact']:.2f}  items {figures['items']:.2f}")
        for positions, perplexity in result.get("perplexity_by_position", {}).items():
            print(f"perplexity of positions {positions:16} {perplexity:,.2f}")
    return {"model": settings.model, **result}


def _benchmarks(settings: EvalSettings) -> dict[str, Any] | None:
    from arwkv_student.evaluation.tasks import evaluate_tasks

    result = evaluate_tasks(settings)
    if not is_first_process():
        return None
    if not settings.json:
        for task, figures in result["tasks"].items():
            for name, value in figures.items():
                print(f"{task:24} {name:28} {value:.4f}")
    return {"model": settings.model, **result}


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Continue a prompt, streaming to the terminal."""
    _prepare()
    from arwkv_student.generate import generate as run

    return run(settings)


def rollout(settings: RolloutSettings) -> dict[str, Any]:
    """Answer prompts, many at a time. After a stop, the same command continues."""
    _prepare()
    from arwkv_student.rollout.rollout import rollout as run

    result = run(settings)
    if not settings.json:
        print(f"{result['answers']:,} answers, {result['ended']:,} of them ended by themselves, in {result['out']}")
    return result


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write a folder that others can use, or a GGUF file, and push it to the Hub."""
    _prepare()
    from arwkv_student.export.publish import publish

    result = publish(settings)
    if not settings.json:
        print(f"{result['out']}: {', '.join(result['files'])}")
        for note in result.get("notes", ()):
            print(f"note: {note}")
        if "url" in result:
            print(f"{result['url']}: commit {result['commit']}")
    return result


def _prepare() -> None:
    # Threads that spin while they wait take time from the threads that read shards, and from other programs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from transformers.utils import logging

    from arwkv_kernels.memory import keep_freed_memory

    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Raises SystemExit with the command's exit code."""
    command_line.main(
        "student",
        "RWKV-7 students of attention language models, trained from shards.",
        {
            "train": train,
            "plan": plan,
            "select": select,
            "eval": evaluate,
            "generate": generate,
            "rollout": rollout,
            "export": export,
        },
        argv,
    )


if __name__ == "__main__":
    main()
