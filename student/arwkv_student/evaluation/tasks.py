"""`student eval --tasks`: benchmarks through lm-eval, on a student or on its teacher."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from arwkv_store.errors import NotFound, UsageError
from arwkv_student.model.loading import accelerator, computes_in_bf16, load_student, padding_rows
from arwkv_student.settings import EvalSettings


@dataclass(frozen=True)
class Suite:
    """Benchmarks by their reported names, and their context."""

    tasks: dict[str, str]
    """Reported name -> lm-eval's task."""
    max_length: int


SUITES = {
    # Table 1 of arXiv 2501.15570: "currently we limit the context length to 2048". It names benchmarks, not shots or
    # variants: these are lm-eval's own defaults for them.
    "arwkv-table1": Suite(
        {
            "MMLU": "mmlu",
            "SQuAD": "squadv2",
            "GPQA (Diamond)": "gpqa_diamond_zeroshot",
            "WinoGrande": "winogrande",
            "GSM8K": "gsm8k",
            "IFEval": "ifeval",
            "ARC-c": "arc_challenge",
        },
        max_length=2048,
    )
}
# Without a suite, if the model's configuration has no length.
DEFAULT_MAX_LENGTH = 2048


def evaluate_tasks(settings: EvalSettings) -> dict[str, Any]:
    """Run lm-eval; returns {"tasks": {name: {metric: value}}, "max_length", …}, with a suite's names for its tasks.

    Processes that were started together share the questions out, and only the first has figures.

    Raises UsageError if lm-eval is missing or does not know a task, NotFound if a task's data cannot be fetched.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("--tasks and --suite need lm-eval, which is not installed; pip install 'arwkv[train]'")
    if settings.model is None:
        raise UsageError("--model is missing; name the folder of a student (or of its teacher, to compare)")
    suite = SUITES[settings.suite] if settings.suite is not None else None
    named = [task.strip() for task in (settings.tasks or "").split(",") if task.strip()]
    reported = {task: name for name, task in suite.tasks.items()} if suite else {}
    tasks = [*reported, *(task for task in named if task not in reported)]
    # lm-eval prints dozens of lines; users need only figures and errors.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _task_manager(tasks, settings.task_folder)
    processes = Accelerator(cpu=not torch.accelerator.is_available())
    model, tokenizer = _open(settings.model)
    max_length = settings.max_length or (suite.max_length if suite else _own_length(model.config))
    found = _run(model, tokenizer, tasks, manager, max_length, settings, processes)
    if not processes.is_main_process:
        found = {"results": {}}
    results = {name: found["results"][name] | found.get("groups", {}).get(name, {}) for name in found["results"]}
    figures = {reported.get(name, name): _figures(result) for name, result in results.items()}
    return {"tasks": figures, "max_length": max_length, "lm_eval": found.get("lm_eval_version")}


def _task_manager(tasks: Sequence[str], folder: Path | None) -> Any:  # lm-eval is untyped
    """An index with all of `tasks`; lm-eval's own 14,000 tasks, which take seconds to list, only if needed."""
    from lm_eval.tasks import TaskManager

    if folder is not None and not folder.is_dir():
        raise NotFound(f"--task-folder {folder}: no such folder; name one that holds lm-eval task files (YAML)")
    include = None if folder is None else str(folder)
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise UsageError(f"--tasks {','.join(unknown)}: lm-eval does not know it; `lm_eval ls tasks` lists all tasks")
    return manager


def _open(name: str) -> tuple[Any, Any]:
    """A student's folder, or any causal language model; and its tokenizer."""
    folder = Path(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type == "arwkv":
            model: Any = load_student(folder)
            model.generation_config.suppress_tokens = padding_rows(tokenizer, config.vocab_size)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise NotFound(f"model {name}: {str(error).splitlines()[0]}; name a folder with model and tokenizer") from error
    return model.to(accelerator()).eval(), tokenizer


def _own_length(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH)


def _run(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    manager: Any,
    max_length: int,
    settings: EvalSettings,
    processes: Accelerator,
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    language_model = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        max_length=max_length,
        truncation=True,
        batch_size=settings.batch_size,
        mixed_precision_dtype="bfloat16" if computes_in_bf16(settings.dtype) else None,
    )
    if processes.num_processes > 1:  # lm-eval sets these for models that it loads itself
        language_model.accelerator = processes
        language_model._rank, language_model._world_size = processes.process_index, processes.num_processes
    try:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            language_model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.samples,
            apply_chat_template=settings.chat,
            log_samples=False,
        )
    except OSError as error:  # raised by `datasets` for data that is missing and cannot be fetched
        raise NotFound(f"{str(error).splitlines()[0]}; fetch the tasks' data, or check the network") from error
    return found


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """lm-eval's `metric,filter` entries; the filter is named only where it is not `none`."""
    numbers = {name: value for name, value in result.items() if "," in name and isinstance(value, int | float)}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items()}
