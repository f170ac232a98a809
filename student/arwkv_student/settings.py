"""The flags of the student's commands. A class that declares fields is one titled group of flags; no torch here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from arwkv_store.commands.command_line import VERBATIM, unset
from arwkv_store.errors import UsageError
from arwkv_student.evaluation.settings import Benchmarks
from arwkv_student.long.settings import LongContext
from arwkv_student.losses.settings import Distill
from arwkv_student.model.time_mix_options import Gate, OutputNorm, Preset, QkNorm, ValueResidual

Stage = Literal["auto", "align", "distill", "sft", "dpo"]
_PRESETS = "{" + ",".join((*get_args(Preset), "transformer")) + "}"
_OF_PRESET = "default: as the preset says"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, from which data."""

    shards: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Dataset with teacher outputs: a folder, or http(s)://HOST/v1/datasets/NAME. A stage reads those that it can."""
    base: Annotated[str, unset("NAME", "required for --shards")] = ""
    """Checkpoint that the student starts from: a folder, or a Hub name (NAME@REVISION)."""
    out: Path = Path("runs/student")
    """Folder of the run. The same command continues an interrupted run."""
    stage: Stage = "auto"
    """`auto` runs what the shards are made for: align with attention outputs or tokens alone, distill with logits.
    `align` also reads the tokens of other shards. sft and dpo read --data."""
    preset: Annotated[
        Preset | Literal["transformer"] | None, unset(_PRESETS, "default: arwkv, or the preset of --start-from")
    ] = None
    """Recipe: the kind of time mixer, and the parameters that stage distill trains."""
    start_from: Annotated[str | None, unset("DIR", "default: convert the base")] = None
    """Folder of a trained student to start from."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How much is read, and in which portions."""

    tokens: Annotated[int | None, unset("INT", "default: one epoch")] = None
    """Tokens of each stage."""
    align_tokens: Annotated[int | None, unset("INT", "default: --tokens")] = None
    """Tokens of stage align."""
    distill_tokens: Annotated[int | None, unset("INT", "default: --tokens")] = None
    """Tokens of stage distill."""
    steps: Annotated[int | None, unset("INT", "default: from the tokens")] = None
    """Optimizer steps of each stage. They replace every number of tokens."""
    epochs: Annotated[float | None, unset("FLOAT", "default: 1")] = None
    """Epochs of each stage, if neither steps nor tokens are given."""
    batch_size: int = 32
    """Sequences per step and process."""
    gradient_accumulation: int = 1
    """Batches per optimizer step."""
    context: Annotated[tuple[int, ...], unset("INT [INT ...]", "default: whole samples")] = ()
    """Stage distill truncates samples to this many tokens. Several numbers follow one another: 2048 4096 8192."""
    context_shares: Annotated[tuple[float, ...] | None, unset("FLOAT [FLOAT ...]", "default: equal shares")] = None
    """Share of the steps for each --context."""
    segment: Annotated[int | None, unset("INT", "default: whole samples at once")] = None
    """Stage distill reads so many tokens of its samples at a time. The state passes on, gradients do not."""
    align_context: Annotated[int | None, unset("INT", "default: whole samples")] = None
    """Stage align truncates samples to this many tokens."""
    max_length: int = 8192
    """Stages sft and dpo truncate a conversation to this many tokens."""
    shard_weights: Annotated[tuple[float, ...] | None, unset("FLOAT [FLOAT ...]", "default: by their samples")] = None
    """Share of the samples from each --shards, in their order."""
    packing: bool = False
    """Concatenate the samples of a batch in one row without padding. Nothing passes from one sample to the next."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast the student learns."""

    align_lr: float = 1e-3
    """Peak learning rate of stage align."""
    distill_lr: float = 1e-4
    """Peak learning rate of stage distill."""
    sft_lr: float = 1e-5
    """Peak learning rate of stage sft."""
    dpo_lr: float = 5e-7
    """Peak learning rate of stage dpo."""
    rest_lr: Annotated[float | None, unset("FLOAT", "default: the stage's rate")] = None
    """Peak learning rate of all parameters outside the time mixers, after stage align."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises to its peak."""
    lr_floor: float = 0.01
    """Final learning rate, as a share of the peak. A cosine leads from the peak to it."""
    weight_decay: float = 0.0
    """Weight decay on matrices."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """`adamw8bit`: moments in 8 bits; needs torchao or bitsandbytes. `muon`: Muon for the layers' matrices, AdamW for
    the rest, at AdamW's learning rates."""
    ema: Annotated[float | None, unset("FLOAT", "default: the last step's weights")] = None
    """Save and evaluate an exponential moving average of the weights with this decay, such as 0.99."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the student is compared with during and after training."""

    eval_shards: Annotated[str | None, unset("URI", "default: no evaluation")] = None
    """Held-out dataset, evaluated at the end of stages align and distill."""
    eval_data: Annotated[str | None, unset("FILE", "default: no evaluation")] = None
    """Held-out JSONL file, evaluated at the end of stages sft and dpo."""
    eval_every: Annotated[int | None, unset("INT", "default: only at the end")] = None
    """Steps between evaluations."""


@dataclass(frozen=True, kw_only=True)
class Align:
    """Stage 1: each time mixer learns the output of its attention block."""

    init: Literal["preset", "calibrated"] = "preset"
    """`calibrated`: before the first step, fit every time mixer to its attention block in closed form."""
    calibration_tokens: int = 20_000
    """Tokens of the stage's data that --init calibrated reads."""
    align_loss: Literal["paper", "mse"] = "paper"
    """`paper`: mean length of the error vectors, without a square. `mse`: mean squared error."""
    align_layer_scaled: bool = False
    """Divide each layer's loss by the loss of a zero-output mixer, so that all layers have equal weight."""
    align_stop_error: Annotated[float | None, unset("FLOAT", "default: run all steps")] = None
    """End the stage once no layer's relative error is above this."""
    align_stop_plateau: Annotated[int | None, unset("INT", "default: run all steps")] = None
    """End the stage once the loss has not fallen by 1% in this many steps."""


@dataclass(frozen=True, kw_only=True)
class SftAndDpo:
    """Stage 3: conversations and preferences."""

    data: Annotated[str | None, unset("FILE", "required for sft and dpo")] = None
    """JSONL file. sft: messages, or prompt and completion. dpo: chosen and rejected."""
    chat_template: Annotated[str | None, unset("FILE", "default: the tokenizer's template")] = None
    """Jinja file with a chat template. It is kept with the student."""
    lora_rank: Annotated[int | None, unset("INT", "default: train the weights themselves")] = None
    """Train low-rank adapters of this rank (LoRA) for the layers' matrices. The student has them added to its weights;
    RUN/STAGE/adapter has them alone, in PEFT's form."""
    lora_alpha: Annotated[float | None, unset("FLOAT", "default: twice the rank")] = None
    """Scale of the adapters' output is alpha / rank."""
    dpo_beta: float = 0.1
    """DPO beta: higher values keep the student closer to the reference."""
    reference: Annotated[str | None, unset("DIR", "default: START_FROM/reference")] = None
    """Folder for the log-probabilities of the student that dpo starts from."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Precision, memory and processes."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. Parameters, decay and state stay fp32. auto: bf16 if it is native, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass. This saves memory and costs time."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the processes (FSDP2). Without it each process keeps a copy."""
    fuse: bool = False
    """Compile the element-wise parts of layers. Each new shape of a batch costs seconds; steps are faster. Lengths
    are rounded up, so that there are few."""
    workers: int = 1
    """Processes that read and decode shards, or tokenize conversations. 0: the training process does."""


@dataclass(frozen=True, kw_only=True)
class Logging:
    """Seed, checkpoints and what a run reports."""

    seed: int = 0
    """Seed of the initial weights and of the order of samples."""
    log_every: int = 10
    """Steps between lines of RUN/metrics.jsonl."""
    save_every: int = 200
    """Steps between checkpoints."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where figures go besides RUN/metrics.jsonl. wandb and trackio need their package."""
    json: bool = False
    """Print a summary as one JSON document."""


@dataclass(frozen=True, kw_only=True)
class AdvancedTimeMixer:
    """Parts of the time mixer. Each replaces what the preset says."""

    layers: Annotated[
        Literal["none"] | tuple[int, ...] | Path | None, unset("none|FILE|INT [INT ...]", "default: all layers")
    ] = None
    """Layers that mix time, or the file of `student select`. The other layers keep the base's attention."""
    kept_rope: Annotated[bool | None, unset("{True,False}", "default: True")] = None
    """Rotary embedding in layers that keep attention."""
    kept_window: Annotated[int | None, unset("INT", "default: as the base")] = None
    """Tokens, itself included, that a token sees in layers that keep attention."""
    head_dim: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Width of one head."""
    num_heads: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Receptance heads."""
    num_key_value_heads: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Key and value heads."""
    qkv_bias: Annotated[bool | None, unset("{True,False}", _OF_PRESET)] = None
    """Biases on receptance, key and value."""
    qk_norm: Annotated[QkNorm | None, unset("{none,head,width}", _OF_PRESET)] = None
    """RMSNorm of receptance and key."""
    rope: Annotated[bool | None, unset("{True,False}", _OF_PRESET)] = None
    """Rotary embedding on receptance and key."""
    token_shift: Annotated[bool | None, unset("{True,False}", _OF_PRESET)] = None
    """Mix each input with the previous token's input."""
    gate: Annotated[Gate | None, unset("{none,low-rank,residual}", _OF_PRESET)] = None
    """Output gate."""
    output_norm: Annotated[OutputNorm | None, unset("{none,group}", _OF_PRESET)] = None
    """Norm of each head's output."""
    bonus: Annotated[bool | None, unset("{True,False}", _OF_PRESET)] = None
    """The current token's own contribution."""
    value_residual: Annotated[ValueResidual | None, unset("{none,detached,differentiable}", _OF_PRESET)] = None
    """How layer 0's value enters later layers."""
    state_balancing: Annotated[bool | None, unset("{True,False}", _OF_PRESET)] = None
    """RADLADS' balanced key."""
    init_from_teacher: Annotated[bool | None, unset("{True,False}", _OF_PRESET)] = None
    """Start from the base's q, k, v and o."""
    decay_rank: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Rank of the decay."""
    rate_rank: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Rank of the in-context learning rate."""
    value_rank: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Rank of the value residual's weight."""
    gate_rank: Annotated[int | None, unset("INT", _OF_PRESET)] = None
    """Rank of the gate."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Run, Length, Rates, Evaluation, Align, Distill, SftAndDpo, Hardware, Logging, AdvancedTimeMixer):
    """Train a student: `align` its time mixers, then `distill` the logits, both from shards; then `sft` and `dpo`."""

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of range."""
        for names, allowed, wanted in RANGES:
            for name in names:
                values = getattr(self, name)
                values = values if isinstance(values, tuple) else (values,)
                if not all(value is None or (math.isfinite(value) and allowed(value)) for value in values):
                    shown = " ".join(map(str, values))
                    raise UsageError(f"--{name.replace('_', '-')} {shown}: give {wanted}, or leave the flag out")
        if self.ema is not None and self.fsdp:
            raise UsageError("--ema --fsdp: the average is of whole weights; leave one of them out")
        for name, reason in UNSEGMENTED.items():
            if self.segment is not None and getattr(self, name):
                raise UsageError(
                    f"--segment {self.segment} --{name.replace('_', '-')}: {reason}; leave one of them out"
                )


COUNTS = (
    *("steps", "tokens", "align_tokens", "distill_tokens", "batch_size", "gradient_accumulation", "context", "segment"),
    *("calibration_tokens", "kept_window", "lora_rank"),
    *("align_context", "max_length", "align_stop_plateau", "log_every", "save_every", "eval_every"),
)
RATES = (
    *("align_lr", "distill_lr", "sft_lr", "dpo_lr", "dpo_beta", "lora_alpha"),
    *("temperature", "align_stop_error", "epochs"),
)
RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (COUNTS, lambda value: value >= 1, "at least 1"),
    (RATES, lambda value: value > 0, "a number above 0"),
    (("rest_lr", "weight_decay", "max_grad_norm", "workers"), lambda value: value >= 0, "0 or more"),
    (("skew", "ema"), lambda value: 0 < value < 1, "a share between 0 and 1"),
    (("ce_weight", "lr_floor", "warmup"), lambda value: 0 <= value <= 1, "a share from 0 to 1"),
)
"""Flags of `student train`, the allowed numbers, and their description in errors."""


UNSEGMENTED = {
    "packing": "a packed row has no single state to pass on",
    "gradient_checkpointing": "a layer that is computed twice would change its state twice",
    "fsdp": "processes whose samples have other lengths would gather weights at other times",
}
"""Flags that do not go with --segment, and why."""


ONLY_TUNING = frozenset({"max_length", "sft_lr", "dpo_lr", "dpo_beta", "lora_rank", "lora_alpha"})
"""Flags that only stages sft and dpo use and compare when a run continues."""

# What may differ when a run continues: places, how often figures are reported, and how a step's samples are split
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


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is evaluated: a trained student, or the untrained student of a base."""

    shards: Annotated[str, unset("URI", "required without --tasks or --suite")] = ""
    """Dataset with logits: a folder, or http(s)://HOST/v1/datasets/NAME."""
    model: Annotated[str | None, unset("DIR", "default: --base")] = None
    """Folder of a student: a run, or one of its stages. With --tasks, any causal language model."""
    base: Annotated[str | None, unset("NAME", "default: --model")] = None
    """Evaluate the untrained student that `student train --base NAME` starts from."""
    preset: Annotated[Preset | Literal["transformer"] | None, unset(_PRESETS, "default: arwkv")] = None
    """Recipe of the untrained student."""
    samples: Annotated[int | None, unset("INT", "default: all")] = None
    """Evaluate only the first samples of the shards, or of each task."""
    batch_size: int = 32
    """Sequences at a time."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. auto: bf16 if the processor multiplies it natively, else fp32."""
    seed: int = 0
    """Seed of the untrained student's weights."""
    json: bool = False
    """Print the figures as one JSON document."""


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Compared, Benchmarks, LongContext, AdvancedTimeMixer):
    """Compare a student with its teacher on held-out shards (the teacher is not needed), or run benchmarks."""


@dataclass(frozen=True)
class GenerateSettings:
    """Continue a prompt, streaming to the terminal."""

    model: str
    """Folder of a student."""
    prompt: Annotated[str, VERBATIM]
    """Text to continue."""
    max_new_tokens: int = 128
    """Maximum number of new tokens."""
    temperature: float = 0.0
    """0: take the likeliest token each time. Above 0: sample."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this probability together."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of matrix products. auto: bf16 if the processor multiplies it natively, else fp32."""
    seed: int = 0
    """Seed of the sampling."""
    chat: bool = False
    """Apply the tokenizer's chat template to the prompt."""
    state: Annotated[Path | None, unset("FILE", "default: no file")] = None
    """Continue from the state in this file, if it exists. The state after the last token is written to it."""
    json: bool = False
    """Print the text as one JSON document."""


@dataclass(frozen=True)
class ExportSettings:
    """Write what others can use: a folder with weights, tokenizer and model card, or one GGUF file for llama.cpp."""

    model: str
    """Folder of a student."""
    out: Path
    """Folder to write, or a file whose name ends with .gguf."""
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32", "f16", "f32", "q8_0", "q4_0"] | None,
        unset("{bf16,fp16,fp32,f16,f32,q8_0,q4_0}", "default: as the student was saved"),
    ] = None
    """Type of the weights; q8_0 and q4_0 for GGUF alone. The decay's bias stays fp32."""
    self_contained: bool = False
    """Add the model's code. With `trust_remote_code=True`, users then need only transformers and torch."""
    gguf: Annotated[
        tuple[Literal["f32", "f16", "bf16", "q8_0", "q4_0"], ...],
        unset("{f32,f16,bf16,q8_0,q4_0} [...]", "default: none"),
    ] = ()
    """Also write GGUF files of these types beside the safetensors."""
    push: Annotated[str | None, unset("OWNER/NAME", "default: stays here")] = None
    """Upload to this model repository on the Hub, which is created if need be. The same command continues."""
    private: bool = False
    """Create the repository as a private one."""
    json: bool = False
    """Print the files as one JSON document."""
