"""What can be asked of the producer: each field is a flag, a help text and a TOML key. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from arwkv_store.errors import UsageError

LogitsMode = Literal["top-k", "adaptive", "sampled", "hybrid", "none"]
HiddenStates = Literal["none", "attention", "boundaries", "final"]


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """What to capture of which teacher."""

    teacher: str
    """A local model folder, or a Hub name, with `@revision` if wanted; `Qwen2.5-32B` means `Qwen/Qwen2.5-32B`."""
    logits: LogitsMode = "top-k"
    """`top-k` likeliest tokens; `adaptive`: those that hold `--top-p`; `sampled`: draws; `hybrid`: both; `none`."""
    top_k: int = 64
    """Candidates kept per token (at most, with `adaptive`)."""
    top_p: float = 0.98
    """With `adaptive`: mass after which a position keeps no further candidates."""
    samples: int = 50
    """Tokens drawn per position: from all of them with `sampled`, from those outside the top k with `hybrid`."""
    hidden_states: HiddenStates = "none"
    """`attention` outputs (stage `align` reads them), `boundaries` (what enters a layer), or the `final` state."""
    logits_codec: Literal["exact", "compact"] = "exact"
    """`exact` keeps fp32; `compact` rounds where the divergence hardly sees it, and takes a third of the bytes less."""
    layers: str = "all"
    """Whose hidden states: `all`, or layer numbers as in `0,4,8`."""
    hidden_dtype: Literal["bf16", "fp8", "int8"] = "bf16"
    """How hidden states are stored; bf16 is exact for a bf16 teacher."""
    max_length: int = 2048
    """Tokens per sample; longer documents are cut into several samples, none is dropped."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The teacher's arithmetic. `auto`: as the dataset began, or the checkpoint's own; float32 in place of bfloat16 if
    the processor does not multiply that natively. The head always runs in float32."""
    samples_per_shard: int = 0
    """Samples in one part; 0 chooses so that a part's files stay near 256 MiB, or goes on as the dataset began."""
    writers: int = 2
    """Parts that are encoded and written at one time, each by a thread and held in memory."""
    step_tokens: int = 4096
    """Tokens per engine step: more is faster until memory is short."""
    tensor_parallel: int = 1
    """Devices that share one copy of the teacher."""
    json: bool = False
    """Print one JSON document on stdout."""

    def __post_init__(self) -> None:
        _require(self.top_k >= 1, f"--top-k {self.top_k}: must be at least 1; use --logits none to keep no tokens")
        _require(0 < self.top_p <= 1, f"--top-p {self.top_p}: must be above 0 and at most 1")
        _require(1 <= self.samples <= 65535, f"--samples {self.samples}: must be from 1 to 65535")
        _require(self.max_length >= 2, f"--max-length {self.max_length}: must be at least 2 tokens")
        _require(self.samples_per_shard >= 0, f"--samples-per-shard {self.samples_per_shard}: must be 0 (auto) or more")
        _require(self.writers >= 1, f"--writers {self.writers}: must be at least 1")
        _require(self.step_tokens >= 1, f"--step-tokens {self.step_tokens}: must be at least 1")
        _require(self.tensor_parallel >= 1, f"--tensor-parallel {self.tensor_parallel}: must be at least 1")
        _require(
            self.logits != "none" or self.hidden_states != "none",
            "--logits none --hidden-states none: nothing to capture; ask for one of them",
        )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(CaptureConfig):
    """Run the teacher over a corpus and write shards. The same command continues after a stop."""

    data: tuple[str, ...]
    """Text: files, folders or globs of .jsonl, .json, .parquet, .csv, .tsv, .arrow and .txt (also .gz, .zst, .bz2 and
    .xz), here or at s3://, hf:// and the like, or a Hub dataset's name, perhaps `NAME:SUBSET`. Several give tokens in
    proportion as `a.jsonl:0.7 b.jsonl:0.3`."""
    out: str
    """The dataset's folder, or s3://BUCKET/NAME or another store's URI."""
    split: str = "train"
    """Which split of a Hub dataset, of one saved to disk, or of files named `train-00000-of-00001.parquet`."""
    strict: bool = False
    """Refuse a folder in which a file would be passed over, as its documentation and hidden files are."""
    field: str = ""
    """The field that holds a document: by default `text`, with `--chat` `messages` or `conversations`."""
    chat: bool = False
    """Documents are conversations: the teacher's chat template applies, and only assistant turns count in the loss."""
    held_out: float = 0.0
    """Fraction of the documents, chosen by their text, that goes into a second dataset, `OUT-held-out`."""
    keep_duplicates: bool = False
    """Keep documents whose text occurred before; by default they are left out and counted."""
    rank: int = 0
    """This process's number among `--world-size`; each makes its own parts of the same dataset."""
    world_size: int = 1
    """Processes that share the work."""
    capture_backend: Literal["pooler", "stock"] = "pooler"
    """`stock` takes the top k from vLLM's own `prompt_logprobs`: where a vLLM does not fit our hook, or to compare."""
    ray: str | None = None
    """Let actors on this Ray cluster do the work: its address, or `auto` for the one that runs here."""
    ray_actors: int = 0
    """Actors, an engine each; 0 takes all of the cluster's GPUs, or one actor a node where there are none."""
    gpu_memory_fraction: float = 0.9
    """Share of each GPU's memory that vLLM may take."""
    fill_disk: bool = False
    """Go on, unasked, although the shards may take more than 90% of what is free on the disk."""
    log_jsonl: str | None = None
    """Append what happens to this file, one JSON object a line."""
    metrics_port: int | None = None
    """Serve counters to Prometheus on this port while the run lasts."""
    metrics_host: str = "127.0.0.1"
    """The address that `--metrics-port` listens on; `0.0.0.0` for a Prometheus elsewhere."""
    dry_run: bool = False
    """Check everything and print the plan. No engine starts, nothing is written."""
    tokens_per_s: float = 0.0
    """The teacher's speed, as a run reported it: a plan then states the hours. 0: unknown."""
    verbose: bool = False
    """Show vLLM's own log."""

    needs_data = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.data) or not self.needs_data, "--data: no file named")
        _require(self.world_size >= 1, f"--world-size {self.world_size}: must be at least 1")
        _require(
            0 <= self.rank < self.world_size,
            f"--rank {self.rank}: must be from 0 to {self.world_size - 1} with --world-size {self.world_size}",
        )
        _require(0 <= self.held_out < 1, f"--held-out {self.held_out}: must be at least 0 and below 1")
        _require(
            self.ray is None or self.world_size == 1,
            f"--ray {self.ray} --world-size {self.world_size}: the actors share the work; leave --world-size out",
        )
        _require(self.ray_actors >= 0, f"--ray-actors {self.ray_actors}: must be 0 (all that fit) or more")
        _require(
            self.metrics_port is None or 0 < self.metrics_port < 65536,
            f"--metrics-port {self.metrics_port}: must be from 1 to 65535",
        )
        _require(
            self.capture_backend == "pooler" or (self.logits in ("top-k", "adaptive") and self.hidden_states == "none"),
            f"--capture-backend stock --logits {self.logits} --hidden-states {self.hidden_states}: vLLM's own "
            "prompt_logprobs are the likeliest tokens and nothing else; use --logits top-k or adaptive without hidden "
            "states, or the pooler",
        )
        _require(self.tokens_per_s >= 0, f"--tokens-per-s {self.tokens_per_s}: must be 0 (unknown) or more")
        _require(0 < self.gpu_memory_fraction <= 1, f"--gpu-memory-fraction {self.gpu_memory_fraction}: from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(GenerateConfig):
    """Print what a capture costs in bytes, shards, memory and time; takes the flags of `producer generate`."""

    data: tuple[str, ...] = ()
    """Text, as for `producer generate`: its tokens are counted. Without it `--tokens` is the size of the corpus."""
    out: str = "shards"
    """The dataset's folder or URI, as for `producer generate`. Nothing is written."""
    tokens: int = 1_000_000_000
    """Size of the corpus in tokens, where `--data` names none."""

    needs_data = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.tokens >= 1, f"--tokens {self.tokens}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Score stored samples again with transformers, and say what does not fit."""

    shards: str
    """The dataset."""
    teacher: str
    """The model that made it: a folder or a Hub name."""
    samples: int = 16
    """Samples to score, chosen by `--seed`."""
    layers: str = ""
    """Layers whose hidden states must be there, as in `producer generate`; by default those that dataset.json names."""
    seed: int = 0
    """Which samples are chosen."""
    json: bool = False
    """Print one JSON document on stdout."""

    def __post_init__(self) -> None:
        _require(self.samples >= 1, f"--samples {self.samples}: must be at least 1")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)
