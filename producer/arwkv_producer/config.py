"""The configuration of the producer's commands: each field is a flag, a help text and a TOML key.

A class that declares fields is one titled group of flags. A command's configuration combines such groups. This module
imports nothing heavy.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from arwkv_store.commands.command_line import unset
from arwkv_store.errors import UsageError

LogitsMode = Literal["top-k", "adaptive", "sampled", "hybrid", "none"]
HiddenStates = Literal["none", "attention", "boundaries", "final"]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Which teacher reads which text, and what is captured."""

    teacher: str
    """A local model folder or a Hub name, optionally with `@revision`. `Qwen2.5-32B` means `Qwen/Qwen2.5-32B`."""
    data: tuple[str, ...]
    """Files, folders or globs of .jsonl, .json, .parquet, .csv, .tsv, .arrow and .txt (also .gz, .zst, .bz2, .xz).
    They may be at s3://, hf:// and similar addresses. Or the name of a Hub dataset: `NAME` or `NAME:SUBSET`.
    Or one dataset that `producer tokenise` made, or an earlier capture, for the same samples.
    `a.jsonl:0.7 b.jsonl:0.3` mixes sources in proportion to their tokens."""
    out: str
    """The dataset's folder, or the URI of an object store, such as s3://BUCKET/NAME."""
    logits: LogitsMode = "top-k"
    """`top-k`: the most likely tokens. `adaptive`: as many of them as hold `--top-p` of the mass.
    `sampled`: random draws. `hybrid`: the top k, and draws from the rest. `none`: no logits."""
    top_k: int = 64
    """Candidates kept per token. With `adaptive` this is the maximum."""
    hidden_states: HiddenStates = "none"
    """`attention`: attention outputs, for stage `align`. `boundaries`: the residual stream between layers.
    `final`: the state that the head reads."""
    layers: str = "all"
    """Layers whose hidden states are captured: `all`, or numbers such as `0,4,8`."""
    max_length: int = 2048
    """Tokens per sample. A longer document is split into several samples; no token is dropped."""


@dataclass(frozen=True, kw_only=True)
class PlannedCapture(Capture):
    """Which teacher reads how much text, and what is captured."""

    data: Annotated[tuple[str, ...], unset("STR [STR ...]", "default: no text")] = ()
    """Text, as for `producer generate`; its tokens are counted. Without it, `--tokens` is the size of the corpus."""
    out: str = "shards"
    """The dataset's folder or URI, as for `producer generate`. Nothing is written."""
    tokens: int = 1_000_000_000
    """Size of the corpus in tokens if `--data` is not given."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """How the text is read."""

    split: str = "train"
    """Split of a Hub dataset, of a dataset saved to disk, or of files named like `train-00000-of-00001.parquet`."""
    field: Annotated[str, unset("NAME", "default: text; with --chat messages or conversations")] = ""
    """Field that holds a document."""
    chat: bool = False
    """Documents are conversations. The teacher's chat template is applied. Only assistant turns count in the loss."""
    held_out: float = 0.0
    """Fraction of the documents that goes into a second dataset, `OUT-held-out`. Their text alone decides."""
    keep_duplicates: bool = False
    """Keep documents whose text occurred before. By default they are left out and counted."""
    strict: bool = False
    """Refuse a folder if any file in it would be skipped, such as documentation or a hidden file."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Details of `--logits adaptive`, `sampled` and `hybrid`."""

    top_p: float = 0.98
    """With `adaptive`: a position keeps candidates until they hold this mass."""
    samples: int = 50
    """Tokens drawn per position: from the whole distribution with `sampled`, from outside the top k with `hybrid`."""


@dataclass(frozen=True, kw_only=True)
class ScaleOut:
    """Several devices, processes or machines."""

    tensor_parallel: int = 1
    """Devices that share one copy of the teacher."""
    rank: int = 0
    """Number of this process, from 0 to `--world-size` - 1. Each process makes its own parts of the same dataset."""
    world_size: int = 1
    """Processes that share the work."""
    ray: Annotated[str | None, unset("ADDRESS", "default: no Ray")] = None
    """Let actors on this Ray cluster do the work. `auto` means the cluster that runs on this machine."""
    ray_actors: int = 0
    """Number of actors; each runs one engine. 0 uses all GPUs of the cluster, or one actor per node without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How the shards are stored."""

    logits_codec: Literal["exact", "compact"] = "exact"
    """`exact` keeps fp32. `compact` rounds log-probabilities that hardly matter, and saves a third of the bytes."""
    hidden_dtype: Literal["bf16", "fp8", "int8"] = "bf16"
    """Storage type of hidden states. bf16 is exact for a bf16 teacher."""
    samples_per_shard: int = 0
    """Samples per part. 0 keeps the value of an existing dataset; for a new dataset it aims at 256 MiB per part."""
    writers: int = 2
    """Parts that are encoded and written at the same time. Each uses a thread and stays in memory until written."""
    fill_disk: bool = False
    """Start even if the shards may take more than 90% of the free disk space."""


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What a run reports."""

    json: bool = False
    """Print one JSON document on stdout."""
    verbose: bool = False
    """Show vLLM's own log."""
    dry_run: bool = False
    """Check everything and print the plan. No engine starts, and nothing is written."""
    tokens_per_s: float = 0.0
    """Speed of the teacher, as an earlier run reported it. A plan then states the hours. 0 means unknown."""
    log_jsonl: Annotated[str | None, unset("FILE", "default: no file")] = None
    """Append events to this file, one JSON object per line."""
    metrics_port: Annotated[int | None, unset("PORT", "default: no metrics")] = None
    """Serve counters to Prometheus on this port during the run."""
    metrics_host: str = "127.0.0.1"
    """Address for `--metrics-port`. Use `0.0.0.0` if Prometheus runs on another machine."""


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """Settings of the engine."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The teacher's arithmetic. `auto`: that of an existing dataset, otherwise the checkpoint's own.
    `auto` replaces bfloat16 by float32 if the processor does not multiply bfloat16 natively.
    The head always runs in float32."""
    step_tokens: int = 4096
    """Tokens per engine step. More tokens are faster and need more memory."""
    gpu_memory_fraction: float = 0.9
    """Fraction of each GPU's memory that vLLM may use."""
    capture_backend: Literal["pooler", "stock", "transformers"] = "pooler"
    """`transformers` runs the teacher without vLLM: slower, for architectures and machines that vLLM does not serve.
    `stock` takes the top k from vLLM's own `prompt_logprobs`. Use it to compare, or if a vLLM refuses our hook."""
    self_check: Literal["auto", "always", "never"] = "auto"
    """Compare a few prompts with transformers before the first shard. `auto`: where `producer doctor` says that such a
    capture is not verified."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Capture, Text, Sampling, ScaleOut, Storage, Logging, Advanced):
    """Run the teacher over a corpus and write shards. After a stop, the same command continues."""

    needs_data = True

    def __post_init__(self) -> None:
        self._require_sizes()
        _require(
            self.logits != "none" or self.hidden_states != "none",
            "--logits none --hidden-states none: nothing to capture; ask for one of them",
        )
        _require(bool(self.data) or not self.needs_data, "--data: no file given")
        _require(
            0 <= self.rank < self.world_size,
            f"--rank {self.rank}: must be from 0 to {self.world_size - 1} with --world-size {self.world_size}",
        )
        _require(
            self.ray is None or self.world_size == 1,
            f"--ray {self.ray} --world-size {self.world_size}: the actors share the work; leave --world-size out",
        )
        _require(
            self.capture_backend != "stock" or (self.logits in ("top-k", "adaptive") and self.hidden_states == "none"),
            f"--capture-backend stock --logits {self.logits} --hidden-states {self.hidden_states}: vLLM's own "
            "prompt_logprobs hold only the most likely tokens; use --logits top-k or adaptive without hidden states, "
            "or --capture-backend pooler",
        )

        _require(
            self.capture_backend != "transformers" or self.tensor_parallel == 1,
            f"--capture-backend transformers --tensor-parallel {self.tensor_parallel}: it runs on one device; "
            "leave --tensor-parallel out, or use --capture-backend pooler",
        )

    def _require_sizes(self) -> None:
        _require(self.top_k >= 1, f"--top-k {self.top_k}: must be at least 1; use --logits none to keep no tokens")
        _require(0 < self.top_p <= 1, f"--top-p {self.top_p}: must be above 0 and at most 1")
        _require(1 <= self.samples <= 65535, f"--samples {self.samples}: must be from 1 to 65535")
        _require(self.max_length >= 2, f"--max-length {self.max_length}: must be at least 2 tokens")
        _require(0 <= self.held_out < 1, f"--held-out {self.held_out}: must be at least 0 and below 1")
        _require(self.samples_per_shard >= 0, f"--samples-per-shard {self.samples_per_shard}: must be 0 (auto) or more")
        _require(self.writers >= 1, f"--writers {self.writers}: must be at least 1")
        _require(self.step_tokens >= 1, f"--step-tokens {self.step_tokens}: must be at least 1")
        _require(self.tensor_parallel >= 1, f"--tensor-parallel {self.tensor_parallel}: must be at least 1")
        _require(self.world_size >= 1, f"--world-size {self.world_size}: must be at least 1")
        _require(self.ray_actors >= 0, f"--ray-actors {self.ray_actors}: must be 0 (all that fit) or more")
        _require(
            self.metrics_port is None or 0 < self.metrics_port < 65536,
            f"--metrics-port {self.metrics_port}: must be from 1 to 65535",
        )
        _require(self.tokens_per_s >= 0, f"--tokens-per-s {self.tokens_per_s}: must be 0 (unknown) or more")
        _require(0 < self.gpu_memory_fraction <= 1, f"--gpu-memory-fraction {self.gpu_memory_fraction}: from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PlannedCapture, GenerateConfig):
    """Print what a capture costs in bytes, shards, memory and time. It takes the flags of `producer generate`."""

    needs_data = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.tokens >= 1, f"--tokens {self.tokens}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """Which text becomes a dataset of tokens."""

    teacher: str
    """A model folder or a Hub name, as for `producer generate`. Only its tokenizer and configuration are read."""
    data: tuple[str, ...]
    """Text, as for `producer generate`."""
    out: str
    """The dataset's folder, or the URI of an object store, such as s3://BUCKET/NAME."""
    max_length: int = 2048
    """Tokens per sample. A longer document is split into several samples; no token is dropped."""
    extend: bool = False
    """`--data` names further text only; what the dataset was made of need not be there."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How the dataset is made."""

    workers: Annotated[int, unset("INT", "default: one for each processor")] = 0
    """Processes that tokenize. Their number changes no byte of the dataset."""
    tokens_per_shard: int = 4_000_000
    """A part is complete when it holds so many tokens, or 16,384 samples."""
    json: bool = False
    """Print one JSON document on stdout."""


@dataclass(frozen=True, kw_only=True)
class TokeniseConfig(TokenStore, Text, Making):
    """Tokenize text into a dataset of tokens, for `producer generate --data` and stage `align`. The same command
    continues, and adds the documents that were appended to the text since."""

    def __post_init__(self) -> None:
        _require(bool(self.data), "--data: no file given")
        _require(self.max_length >= 2, f"--max-length {self.max_length}: must be at least 2 tokens")
        _require(0 <= self.held_out < 1, f"--held-out {self.held_out}: must be at least 0 and below 1")
        _require(self.workers >= 0, f"--workers {self.workers}: must be 0 (one for each processor) or more")
        _require(self.tokens_per_shard >= 1, f"--tokens-per-shard {self.tokens_per_shard}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared."""

    shards: str
    """The dataset."""
    teacher: str
    """The model that made it: a local folder or a Hub name."""
    json: bool = False
    """Print one JSON document on stdout."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of the dataset is compared."""

    samples: int = 16
    """Number of samples to score."""
    seed: int = 0
    """Seed of the random choice of samples."""
    layers: Annotated[str, unset("STR", "default: the layers that dataset.json names")] = ""
    """Layers whose hidden states must be in the dataset, as in `producer generate`."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Comparison, Selection):
    """Score stored samples again with transformers, and report what differs."""

    def __post_init__(self) -> None:
        _require(self.samples >= 1, f"--samples {self.samples}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Say what will happen with a teacher, or which families of teachers were compared with transformers."""

    teacher: Annotated[str, unset("NAME", "default: print the table of families")] = ""
    """A local model folder or a Hub name. Only its configuration is read."""
    json: bool = False
    """Print one JSON document on stdout."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
