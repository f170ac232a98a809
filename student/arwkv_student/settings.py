"""The flags of `student train`, `eval`, `generate`: one dataclass each; no torch here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from arwkv_store.commands.command_line import VERBATIM
from arwkv_store.errors import UsageError
from arwkv_student.model.time_mix_options import Gate, OutputNorm, Preset, ValueResidual

Stage = Literal["auto", "align", "distill", "sft", "dpo"]


@dataclass(frozen=True)
class TimeMixSettings:
    """Options of the time mixer, each over what the preset says."""

    preset: Preset | None = None
    """The recipe: which time mixer, and what stage 2 trains (default: arwkv, or the --start-from student's)."""
    head_dim: int | None = None
    """Width of one time-mixing head."""
    num_heads: int | None = None
    """Receptance heads."""
    num_key_value_heads: int | None = None
    """Key and value heads."""
    qkv_bias: bool | None = None
    """Biases on receptance, key and value."""
    rope: bool | None = None
    """Rotary embedding on receptance and key."""
    token_shift: bool | None = None
    """Mix each input with the previous token's."""
    gate: Gate | None = None
    """Output gate."""
    output_norm: OutputNorm | None = None
    """Norm of each head's output."""
    bonus: bool | None = None
    """The current token's own contribution."""
    value_residual: ValueResidual | None = None
    """How layer 0's value enters later layers."""
    state_balancing: bool | None = None
    """RADLADS' balanced key."""
    init_from_teacher: bool | None = None
    """Start from the base's q, k, v and o."""
    decay_rank: int | None = None
    """Rank of the decay."""
    rate_rank: int | None = None
    """Rank of the in-context learning rate."""
    value_rank: int | None = None
    """Rank of the value residual's weight."""
    gate_rank: int | None = None
    """Rank of the gate."""
    layers: tuple[int, ...] | None = None
    """Layers that mix time; the others keep the base's attention (default: all mix time)."""


@dataclass(frozen=True)
class TuneSettings:
    """Options of stage 3: `sft` and `dpo`."""

    data: str | None = None
    """JSONL file of stages sft (messages, or prompt and completion) and dpo (chosen and rejected)."""
    eval_data: str | None = None
    """Held-out JSONL file of the same form, evaluated at the end (and every --eval-every steps)."""
    max_length: int = 8192
    """Tokens of a conversation that stages sft and dpo keep, from its start."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's chat template, for training and afterwards."""
    sft_lr: float = 1e-5
    """Peak learning rate of stage sft."""
    dpo_lr: float = 5e-7
    """Peak learning rate of stage dpo."""
    dpo_beta: float = 0.1
    """How dear it is in stage dpo to leave the student that it starts from."""
    reference: str | None = None
    """Folder for the log-probabilities of dpo's starting student (default: `reference` in --start-from)."""


@dataclass(frozen=True)
class TrainSettings(TuneSettings, TimeMixSettings):
    """Train a student: `align` its time mixers, `distill` the logits, both from shards; then `sft` and `dpo`."""

    shards: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Dataset: a folder, or http(s)://host/v1/datasets/NAME. Once for each; a stage reads those that hold its part."""
    shard_weights: tuple[float, ...] | None = None
    """Share of the samples from each --shards, in their order (default: by their number of samples)."""
    base: str = ""
    """Qwen2 or Qwen2.5 checkpoint that the student starts from: a folder, or a Hub name (name@revision)."""
    out: Path = Path("runs/student")
    """Folder of the run; the same command again continues it."""
    stage: Stage = "auto"
    """`auto` runs what the shards allow: align with attention outputs, distill with logits. sft and dpo read --data."""
    start_from: str | None = None
    """A trained student's folder to start from instead of the base's conversion."""
    eval_shards: str | None = None
    """Held-out dataset, evaluated at the end of each stage (and every --eval-every steps)."""
    tokens: int | None = None
    """Tokens of each stage (default: one epoch)."""
    align_tokens: int | None = None
    """Tokens of stage align, over --tokens."""
    distill_tokens: int | None = None
    """Tokens of stage distill, over --tokens."""
    steps: int | None = None
    """Optimiser steps of each stage, over every --tokens."""
    epochs: float | None = None
    """Epochs of each stage, where neither steps nor tokens are given."""
    batch_size: int = 32
    """Sequences per step and process."""
    context: tuple[int, ...] = ()
    """Longest sample of stage distill in tokens, rest cut off: one number, or one after another (2048 4096 8192)."""
    context_shares: tuple[float, ...] | None = None
    """Share of the steps for each --context (default: equal)."""
    align_context: int | None = None
    """Longest sample of stage align in tokens."""
    packing: bool = False
    """A batch's samples one after another in one row, without padding; nothing passes from one to the next."""
    gradient_accumulation: int = 1
    """Batches per optimiser step."""
    align_loss: Literal["paper", "mse"] = "paper"
    """`paper`: mean of the error vectors' lengths, un-squared; `mse`: mean squared error."""
    align_layer_scaled: bool = False
    """Divide each layer's loss by that of a silent mixer, so that every layer counts alike."""
    align_stop_error: float | None = None
    """End stage align once no layer's relative error is above this."""
    align_stop_plateau: int | None = None
    """End stage align once the loss has not fallen by 1% in so many steps."""
    align_lr: float = 1e-3
    """Peak learning rate of stage align."""
    distill_lr: float = 1e-4
    """Peak learning rate of stage distill."""
    lr_floor: float = 0.01
    """Last learning rate, as a share of the peak; the way there is a cosine."""
    warmup: float = 0.02
    """Share of the steps that the learning rate rises for."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    rest_lr: float | None = None
    """Peak learning rate of what is not a time mixer in stage distill (default: --distill-lr)."""
    divergence: Literal["forward", "reverse", "adaptive"] = "forward"
    """Distance from the teacher in stage distill."""
    temperature: float = 1.0
    """Temperature of stage distill."""
    ce_weight: float = 0.0
    """Share of the true tokens' cross-entropy in stage distill's loss."""
    teacher_head: str | None = None
    """Checkpoint whose head reads shards of final hidden states (default: the base's)."""
    trained: Literal["preset", "all", "frozen-mlp", "time-mix"] = "preset"
    """What stage distill trains: `arwkv` and `arwkv-from-32b` freeze the MLPs, the other presets train all."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products; parameters, decay and state stay fp32. auto: bf16 where it is native, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping them."""
    fsdp: bool = False
    """Spread parameters and optimiser state over the processes (FSDP2) instead of a copy in each."""
    fuse: bool = False
    """Compile time mixing's element-wise parts: seconds for each new shape of a batch, then faster steps."""
    seed: int = 0
    """Decides initial weights and the order of samples."""
    log_every: int = 10
    """Steps between lines of RUN/metrics.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    eval_every: int | None = None
    """Steps between evaluations on --eval-shards."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where figures go besides RUN/metrics.jsonl; wandb and trackio need their package."""
    workers: int = 1
    """Processes that read and decode shards; 0: the training process itself."""
    json: bool = False
    """Print a summary as one JSON document."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number that no run can have."""
        for names, allowed, wanted in RANGES:
            for name in names:
                values = getattr(self, name)
                values = values if isinstance(values, tuple) else (values,)
                if not all(value is None or (math.isfinite(value) and allowed(value)) for value in values):
                    shown = " ".join(map(str, values))
                    raise UsageError(f"--{name.replace('_', '-')} {shown}: give {wanted}, or leave the flag out")


COUNTS = (
    *("steps", "tokens", "align_tokens", "distill_tokens", "batch_size", "gradient_accumulation", "context"),
    *("align_context", "max_length", "align_stop_plateau", "log_every", "save_every", "eval_every"),
)
RATES = ("align_lr", "distill_lr", "sft_lr", "dpo_lr", "dpo_beta", "temperature", "align_stop_error", "epochs")
RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (COUNTS, lambda value: value >= 1, "at least 1"),
    (RATES, lambda value: value > 0, "a number above 0"),
    (("rest_lr", "weight_decay", "max_grad_norm", "workers"), lambda value: value >= 0, "0 or more"),
    (("ce_weight", "lr_floor", "warmup"), lambda value: 0 <= value <= 1, "a share from 0 to 1"),
)
"""Flags of `student train`, what their numbers may be, and how that is said."""


# What may differ when a run continues: where things are, how often they are said, and how a step's samples are split
# between processes and batches (their number is compared).
NOT_COMPARED = frozenset(
    {
        "batch_size",
        "gradient_accumulation",
        "out",
        "data",
        "eval_data",
        "chat_template",
        "reference",
        "shards",
        "base",
        "teacher_head",
        "start_from",
        "eval_shards",
        "log_every",
        "save_every",
        "eval_every",
        "report_to",
        "workers",
        "json",
        "gradient_checkpointing",
        "fsdp",
    }
)


@dataclass(frozen=True)
class EvalSettings(TimeMixSettings):
    """Compare a student with its teacher on held-out shards (the teacher is not needed), or run benchmarks."""

    shards: str = ""
    """Dataset with logits: a folder, or http(s)://host/v1/datasets/NAME."""
    tasks: str | None = None
    """Instead of --shards: lm-eval tasks, separated by commas."""
    suite: Literal["arwkv-table1"] | None = None
    """Named tasks at a named context; arwkv-table1: the seven benchmarks of arXiv 2501.15570, Table 1, at 2048."""
    task_folder: Path | None = None
    """Folder with lm-eval task files (YAML) of your own."""
    max_length: int | None = None
    """Tokens of context for --tasks (default: the suite's, or the model's)."""
    num_fewshot: int | None = None
    """Examples before each question of --tasks (default: each task's own number)."""
    chat: bool = False
    """Put the questions of --tasks through the chat template."""
    model: str | None = None
    """Folder of a student: a run, or one of its stages; with --tasks any causal language model, such as its teacher."""
    base: str | None = None
    """Instead of --model: evaluate the untrained student that `train --base` would start from."""
    samples: int | None = None
    """Samples to evaluate, of each task or of the shards, from the first (default: all)."""
    batch_size: int = 32
    """Sequences at a time."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. auto: bf16 where the processor multiplies it natively, else fp32."""
    seed: int = 0
    """Of the untrained student's random weights."""
    json: bool = False
    """Print the figures as one JSON document."""


@dataclass(frozen=True)
class GenerateSettings:
    """Continue a prompt, streaming to the terminal."""

    model: str
    """Folder of a student."""
    prompt: Annotated[str, VERBATIM]
    """Text to continue."""
    max_new_tokens: int = 128
    """Tokens to add at most."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, samples."""
    top_p: float = 1.0
    """Sample among the likeliest tokens of this total probability."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. auto: bf16 where the processor multiplies it natively, else fp32."""
    seed: int = 0
    """Of the sampling."""
    chat: bool = False
    """Put the prompt through the tokenizer's chat template."""
    state: Path | None = None
    """File with a state to go on from, where it exists; the state after the last token is kept there."""
    json: bool = False
    """Print the text as one JSON document."""


@dataclass(frozen=True)
class ExportSettings:
    """Write a folder that others can use: weights, tokenizer and model card."""

    model: str
    """Folder of a student."""
    out: Path
    """Folder to write."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type of the weights (default: as the student was saved). The decay's bias stays fp32."""
    self_contained: bool = False
    """Add the code, so that `trust_remote_code=True` needs no other package than transformers."""
    json: bool = False
    """Print the files as one JSON document."""
