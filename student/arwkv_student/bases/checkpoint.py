"""The base checkpoint: a Qwen2, Qwen2.5 or Llama folder or Hub name, of which single tensors are read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import INDEX, read_json, require_whole_weights
from arwkv_store.format.weights import hash_of_config, hash_of_weights
from arwkv_student.bases.tokenizer import TOKENIZER_AND_GENERATION

SUPPORTED = ("qwen2", "llama")
QKV_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint on disk: its folder, its configuration, and which file holds which tensor."""

    name: str
    folder: Path
    config: dict[str, Any]
    file_of_tensor: dict[str, str]

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:  # Any: torch.Tensor, which loads slowly
        """Yield (name, tensor) for these names only; nothing else of the weights is read.

        The biases of query, key and value that a Llama lacks are zeros. Raises UsageError naming the first tensor that
        the checkpoint lacks.
        """
        import torch
        from safetensors import safe_open

        by_file: dict[str, list[str]] = {}
        for name in names:
            stored = self._stored_name(name)
            if stored not in self.file_of_tensor:
                kind = self.config["model_type"]
                raise UsageError(f"base {self.name}: no tensor {stored} in {self.folder}; is it a {kind} causal LM?")
            by_file.setdefault(self.file_of_tensor[stored], []).append(name)
        for file, wanted in by_file.items():
            with safe_open(self.folder / file, framework="pt") as opened:
                for name in wanted:
                    stored = self._stored_name(name)
                    absent = stored != name
                    yield (
                        name,
                        torch.zeros(opened.get_slice(stored).get_shape()[0]) if absent else opened.get_tensor(name),
                    )

    def _stored_name(self, name: str) -> str:
        """The tensor itself, or the weight whose bias is zero."""
        if self.config["model_type"] == "llama" and name.endswith(QKV_BIASES):
            return name.removesuffix("bias") + "weight"
        return name

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary embedding's settings, whichever of the names that configurations have had for them is used."""
        from transformers import AutoConfig

        parameters: dict[str, Any] = AutoConfig.for_model(**self.config).rope_parameters
        return parameters

    @cached_property
    def weights_hash(self) -> str:
        """The hash of the weight files that shards captured from this folder carry: xxh3-128, names and contents."""
        return hash_of_weights(self.folder)

    @property
    def config_hash(self) -> str:
        """The hash of the configuration that follows it there, after a hyphen."""
        return hash_of_config(self.config)

    def identity(self) -> dict[str, Any]:
        """What a run records of it, and compares by `checkpoint`."""
        return {"name": self.name, "revision": self.revision, "checkpoint": self.weights_hash}

    @property
    def revision(self) -> str | None:
        """The commit of a snapshot from the Hub, or None."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None


def open_base(name: str) -> BaseCheckpoint:
    """Find a checkpoint: a local folder, or a Hub name (`name@revision`; a bare name means Qwen/name).

    Raises NotFound where there is none or it lacks a file, UsageError where it is of another family, has biases that
    students lack, or a file is not whole.
    """
    folder = Path(name) if Path(name).is_dir() else _from_hub(name)
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"base {name}: no config.json in {folder}; name a Hugging Face model folder")
    config = read_json(f"base {name}", path)
    if config.get("model_type") not in SUPPORTED:
        raise UsageError(
            f"base {name}: model type {config.get('model_type')!r}; name a Qwen2, Qwen2.5 or Llama checkpoint"
        )
    for field in ("attention_bias", "mlp_bias"):
        if config.get(field):
            raise UsageError(f"base {name}: {field} is true in its config.json; name a Llama checkpoint without it")
    require_whole_weights(f"base {name}", folder)
    return BaseCheckpoint(name, folder, config, _file_of_tensor(name, folder))


def _file_of_tensor(name: str, folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        return dict(read_json(f"base {name}", folder / INDEX).get("weight_map", {}))
    file = folder / "model.safetensors"
    if not file.is_file():
        raise NotFound(f"base {name}: no model.safetensors in {folder}; save the model as safetensors")
    with safe_open(file, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), file.name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    if "/" not in repository:
        repository = f"Qwen/{repository}"
    try:
        patterns = ["*.safetensors", INDEX, "config.json", *TOKENIZER_AND_GENERATION]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFound(
            f"model {name}: no such folder, and no {repository} from the Hub; check the name, or the network"
        ) from error
