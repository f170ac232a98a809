"""The base checkpoint: a folder or Hub name of a family that students start from, of which single tensors are read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import INDEX, read_json, require_whole_weights
from arwkv_store.format.weights import hash_of_config
from arwkv_student.bases.remembered_hash import remembered_hash_of_weights
from arwkv_student.bases.tokenizer import TOKENIZER_AND_GENERATION
from arwkv_student.model.architectures import Architecture, architecture_of
from arwkv_student.model.time_mix_options import BaseShape

MOST_MAPPED_BYTES = 64 << 20
"""How much of a file is read before it is mapped anew: what was read counts as the process's memory until then."""


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint on disk: its folder, its configuration, and which file holds which tensor."""

    name: str
    folder: Path
    config: dict[str, Any]
    file_of_tensor: dict[str, str]

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:  # Any: torch.Tensor, which loads slowly
        """Yield (name, tensor) for these names only; nothing else of the weights is read.

        Raises UsageError naming the first tensor that the checkpoint lacks.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self.file_of_tensor:
                kind = self.config["model_type"]
                raise UsageError(f"base {self.name}: no tensor {name} in {self.folder}; is it a {kind} causal LM?")
            by_file.setdefault(self.file_of_tensor[name], []).append(name)
        for file, wanted in by_file.items():
            yield from _tensors_of(self.folder / file, wanted)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, from the heads of the files alone."""
        from safetensors import safe_open

        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self.file_of_tensor.values())):
            with safe_open(self.folder / file, framework="pt") as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return found

    def require_shape(self, name: str, stored: Sequence[int], own: Sequence[int]) -> None:
        """Raise UsageError unless a stored tensor has the shape of the student's."""
        if tuple(stored) != tuple(own):
            raise UsageError(
                f"base {self.name}: tensor {name} is {tuple(stored)}, the student's {tuple(own)}; "
                "its config.json does not describe its weights"
            )

    @cached_property
    def architecture(self) -> Architecture:
        """The family's entry."""
        return architecture_of(f"base {self.name}", self.config["model_type"])

    @cached_property
    def family_config(self) -> Any:  # transformers is untyped
        """The configuration as transformers reads it: fields that config.json leaves out, and older names of others."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**{name: value for name, value in self.config.items() if name != "dtype"})

    @property
    def shape(self) -> BaseShape:
        """The widths, as presets read them."""
        return self.architecture.shape(self.family_config)

    @cached_property
    def weights_hash(self) -> str:
        """The hash of the weights, as in shards captured from this folder: xxh3-128 over names and contents."""
        return remembered_hash_of_weights(self.folder)

    @property
    def config_hash(self) -> str:
        """The hash of the configuration, as in these shards after a hyphen."""
        return hash_of_config(self.config)

    def identity(self) -> dict[str, Any]:
        """The record of it in a run, which compares `checkpoint`."""
        return {"name": self.name, "revision": self.revision, "checkpoint": self.weights_hash}

    @property
    def revision(self) -> str | None:
        """The commit of a snapshot from the Hub, or None."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None


def open_base(name: str, *, any_family: bool = False) -> BaseCheckpoint:
    """Find a checkpoint: a local folder, or a Hub name (`name@revision`; a bare name means Qwen/name).

    `any_family`: of preset `transformer`, whose student is the checkpoint itself.

    Raises NotFound where there is none or it lacks a file, UsageError where it is of a family or turns positions in a
    way that is not known here, or a file is not whole.
    """
    folder = Path(name) if Path(name).is_dir() else _from_hub(name)
    config = _config_of(name, folder)
    if not any_family:
        architecture_of(f"base {name}", config.get("model_type"))
    require_whole_weights(f"base {name}", folder)
    base = BaseCheckpoint(name, folder, config, _file_of_tensor(name, folder))
    if not any_family:
        _require_known_rope(base)
    return base


def open_base_config(name: str) -> BaseCheckpoint:
    """The same by its configuration alone, without a tensor: what a plan needs.

    Raises NotFound where there is no config.json, or neither the Hub nor its cache has one, and UsageError as
    `open_base` does.
    """
    folder = Path(name) if Path(name).is_dir() else _from_hub(name, ["config.json"])
    config = _config_of(name, folder)
    architecture_of(f"base {name}", config.get("model_type"))
    base = BaseCheckpoint(name, folder, config, {})
    _require_known_rope(base)
    return base


def _config_of(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"base {name}: no config.json in {folder}; name a Hugging Face model folder")
    return read_json(f"base {name}", path)


def _require_known_rope(base: BaseCheckpoint) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = (base.family_config.rope_parameters or {}).get("rope_type", "default")
    if kind not in ("default", *ROPE_INIT_FUNCTIONS):
        known = ", ".join(ROPE_INIT_FUNCTIONS)
        raise UsageError(f"base {base.name}: rope type {kind!r} in its config.json; known are default, {known}")


def _file_of_tensor(name: str, folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        return dict(read_json(f"base {name}", folder / INDEX).get("weight_map", {}))
    file = folder / "model.safetensors"
    if not file.is_file():
        raise NotFound(f"base {name}: no model.safetensors in {folder}; save the model as safetensors")
    with safe_open(file, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), file.name)


def _tensors_of(file: Path, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    waiting = iter(names)
    while name := next(waiting, None):
        read_bytes = 0
        with safe_open(file, framework="pt") as opened:
            while name is not None:
                tensor = opened.get_tensor(name)
                read_bytes += tensor.nbytes
                yield name, tensor
                name = next(waiting, None) if read_bytes < MOST_MAPPED_BYTES else None


WEIGHTS_AND_TOKENIZER = ("*.safetensors", INDEX, "config.json", *TOKENIZER_AND_GENERATION)


def _from_hub(name: str, patterns: Sequence[str] = WEIGHTS_AND_TOKENIZER) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    if "/" not in repository:
        repository = f"Qwen/{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFound(
            f"model {name}: no such folder, and no {repository} from the Hub; check the name, or the network"
        ) from error
