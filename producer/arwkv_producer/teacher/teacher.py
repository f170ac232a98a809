"""The description of a teacher before its weights are loaded: configuration, tokenizer, identity."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arwkv_producer.teacher.capture import DECODERS
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import read_json, require_whole_weights
from arwkv_store.format.weights import hash_of_checkpoint

OWNERS = {"Qwen": "Qwen", "Llama": "meta-llama", "Meta-Llama": "meta-llama"}
"""Hub owner of a bare model name, by the name's beginning."""


@dataclass(frozen=True)
class Teacher:
    """A teacher's description."""

    model: str
    """The name for vLLM: a folder or a Hub name."""
    name: str
    """The recorded name: the folder's own name, or the Hub name."""
    revision: str | None
    config: Mapping[str, Any]
    """config.json."""
    architecture: str

    @property
    def has_text_part(self) -> bool:
        """Whether the text decoder has a configuration of its own, inside a multimodal model's."""
        return bool(self.config.get("text_config"))

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the configuration that describes the text decoder: all, but in a multimodal model."""
        text: Mapping[str, Any] = self.config.get("text_config") or self.config
        return text

    def _number(self, *names: str) -> int:
        """A number of the configuration, under the first of the names that it has. Raises UsageError without one."""
        found = next((self.text[name] for name in names if isinstance(self.text.get(name), int)), None)
        if found is None:
            raise UsageError(
                f"--teacher {self.name}: no {names[0]} in its config.json; save the model with transformers"
            )
        return int(found)

    @property
    def model_type(self) -> str:
        """Of the text decoder."""
        return str(self.text.get("model_type", ""))

    @property
    def family(self) -> str:
        """The model type of all of it: a multimodal wrapper has its own."""
        return str(self.config.get("model_type", ""))

    @property
    def layers(self) -> int:
        return self._number("num_hidden_layers", "n_layer", "n_layers", "num_layers")

    @property
    def width(self) -> int:
        return self._number("hidden_size", "n_embd", "d_model")

    @property
    def head_size(self) -> int:
        """Width of one attention head; 0 where keys are kept in latent form, and heads have no one width."""
        if "kv_lora_rank" in self.text:
            return 0
        return int(self.text.get("head_dim") or self.width // self._number("num_attention_heads", "n_head", "n_heads"))

    @property
    def head_rows(self) -> int:
        """Rows of the output head, padding included."""
        return self._number("vocab_size")

    @property
    def quantization(self) -> Mapping[str, Any]:
        """The checkpoint's quantization settings; empty if it is not quantized."""
        return self.config.get("quantization_config") or {}

    @property
    def head_dtype(self) -> str:
        """The head's arithmetic: fp32, except for a quantized head, which vLLM runs only in the model's."""
        return "model" if self.quantization.get("lm_head") else "float32"

    @property
    def max_length(self) -> int:
        return self._number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

    @property
    def dtype(self) -> str:
        """The checkpoint's own arithmetic."""
        own = self.text.get("dtype") or self.text.get("torch_dtype") or self.config.get("dtype")
        return str(own or self.config.get("torch_dtype") or "float32").removeprefix("torch.")


def find_teacher(name: str) -> Teacher:
    """Read the configuration of a local folder or a Hub model.

    Raises NotFound, or UsageError where its architecture is no decoder with a head.
    """
    local = Path(name).expanduser()
    if local.exists():
        model, recorded, revision, config = str(local), local.resolve().name, None, _read_local_config(local)
    else:
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise NotFound(f"--teacher {name}: no such folder; name a model folder or a Hub model")
        asked, _, revision_asked = name.partition("@")
        model = recorded = _with_owner(asked)
        config, revision = _read_hub_config(model, revision_asked or None)
    architecture = (config.get("architectures") or ["none named"])[0]
    if not architecture.endswith(DECODERS):
        raise UsageError(
            f"--teacher {name}: architecture {architecture} is no text decoder with a head; name a causal LM"
        )
    return Teacher(model=model, name=recorded, revision=revision, config=config, architecture=architecture)


def _read_local_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"--teacher {folder}: no config.json there; name a Hugging Face model folder")
    return read_json(f"--teacher {folder.name}", path)


def _with_owner(name: str) -> str:
    if "/" in name:
        return name
    owner = next((owner for start, owner in OWNERS.items() if name.startswith(start)), None)
    return name if owner is None else f"{owner}/{name}"


def _read_hub_config(name: str, revision: str | None) -> tuple[dict[str, Any], str | None]:
    """config.json of a Hub model (or of its local cache) and the commit it was read at."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, "config.json", revision=revision))
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise NotFound(
            f"--teacher {name}: not a local folder, and the Hub cannot be reached; name a folder that holds the model"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFound(f"--teacher {name}: no such local folder and no such model on the Hub ({reason})") from error
    # The cache keeps files under snapshots/COMMIT/.
    return dict(json.loads(path.read_text())), path.parent.name


def auto_class(teacher: Teacher) -> Any:
    """Which class of transformers makes the model: its text decoder, or all of a multimodal one."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    is_wrapper = teacher.architecture.endswith("ForConditionalGeneration")
    return AutoModelForMultimodalLM if is_wrapper else AutoModelForCausalLM


def native_dtype(teacher: Teacher) -> str:
    """The checkpoint's own arithmetic, but fp32 instead of bf16 if bf16 is not native here."""
    if teacher.dtype != "bfloat16":
        return teacher.dtype
    from arwkv_kernels.precision import compute_dtype

    return str(compute_dtype()).removeprefix("torch.")


def weights_hash(teacher: Teacher, present: str | None = None) -> str | None:
    """`hash_of_checkpoint` of a local folder; None for a Hub model, which has a revision.

    A dataset of a release that hashed only the weights can be continued: if `present` is that hash, it is returned.
    """
    folder = Path(teacher.model)
    if teacher.revision is not None or not folder.is_dir():
        return None
    found = hash_of_checkpoint(folder, teacher.config)
    return present if present == found.partition("-")[0] else found


def require_weights(teacher: Teacher) -> None:
    """Raise NotFound if a local folder lacks weight files, UsageError if one is truncated."""
    folder = Path(teacher.model)
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise NotFound(f"--teacher {folder}: no *.safetensors or *.bin there; put the weights beside config.json")
    if folder.is_dir():
        require_whole_weights(f"--teacher {folder.name}", folder)


def chosen_layers(text: str, hidden_states: str, layers: int) -> tuple[int, ...]:
    """Layer numbers of `--layers`. Boundary L comes after the last layer. Raises UsageError outside the model."""
    if hidden_states in ("none", "final"):
        return ()
    limit = layers + 1 if hidden_states == "boundaries" else layers
    if text == "all":
        return tuple(range(limit))
    try:
        numbers = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UsageError(f"--layers {text}: neither `all` nor numbers such as 0,4,8") from None
    outside = [number for number in numbers if not 0 <= number < limit]
    if outside:
        raise UsageError(f"--layers {text}: the teacher has no layer {outside[0]}; its layers are 0 to {limit - 1}")
    return tuple(numbers)
