"""The layers that mix time, as `--layers` names them: numbers, `none`, or a file that `student select` wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import read_json
from arwkv_student.bases.checkpoint import BaseCheckpoint


def chosen_layers(
    base: BaseCheckpoint, layers: Literal["none"] | Sequence[int] | Path | None
) -> tuple[int, ...] | None:
    """The layers that mix time; None: all.

    Raises NotFound or UsageError for a file that is missing, unreadable, or of a base with another number of layers.
    """
    if layers == "none":
        return ()
    if isinstance(layers, Path):
        return _layers_of_file(base, layers)
    return None if layers is None else tuple(layers)


def _layers_of_file(base: BaseCheckpoint, file: Path) -> tuple[int, ...]:
    if not file.is_file():
        raise NotFound(f"--layers {file}: no such file; write it with student select, or give layer numbers")
    document = read_json("--layers", file)
    layers, depth = document.get("layers"), document.get("num_hidden_layers")
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise UsageError(f"--layers {file}: no list of layer numbers under 'layers'; write it with student select")
    if depth != (own := base.family_config.num_hidden_layers):
        raise UsageError(
            f"--layers {file}: chosen for a base of {depth} layers, and {base.name} has {own}; select its layers anew"
        )
    return tuple(layers)
