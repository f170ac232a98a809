"""A recipe of your own: a student whose time mixers follow no preset, and that keeps attention in its last layer.

Example: `python examples/own_preset.py --base Qwen2.5-0.5B --out runs/own`, then
`student train --stage distill --start-from runs/own --base Qwen2.5-0.5B --shards ./shards --out runs/student`.
Each option is a flag of `student train` as well: `--preset rad-rwkv7 --output-norm group --gate none --layers 0 1 2`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from arwkv_store.commands.command_line import main

PRESET = "rad-rwkv7"
"""What the recipe starts from: the base's heads, biases and rope, its q, k, v and o."""
OPTIONS = {"gate": "none", "output_norm": "group", "bonus": True, "decay_rank": 32}
"""What it changes; the fields of `TimeMixOptions` are the choices."""


@dataclasses.dataclass(frozen=True)
class PresetConfig:
    """Write the untrained student of a base, with time mixers of your own."""

    base: str
    """Checkpoint that the student starts from: a folder, or a Hub name."""
    out: Path
    """Folder of the student."""
    seed: int = 0
    """Decides the new weights."""
    json: bool = False
    """Print what was written as one JSON document."""


def write_student(config: PresetConfig) -> dict[str, Any]:
    """Convert the base and save the student as a Hugging Face folder."""
    import torch

    from arwkv_student.bases.checkpoint import open_base
    from arwkv_student.bases.convert import convert, student_config
    from arwkv_student.bases.tokenizer import copy_tokenizer

    torch.manual_seed(config.seed)
    base = open_base(config.base)
    mixing = range(base.config["num_hidden_layers"] - 1)
    student = convert(base, student_config(base, PRESET, OPTIONS, mixing)).model
    student.save_pretrained(config.out)
    copy_tokenizer(base.folder, config.out)
    trained = sum(weight.numel() for name, weight in student.named_parameters() if ".time_mix." in name)
    return {"out": str(config.out), "layers": student.config.layer_types, "time_mix_parameters": trained}


if __name__ == "__main__":
    main("own_preset", "A student with time mixers of your own.", write_student)
