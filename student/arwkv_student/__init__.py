"""The student: RWKV-7 time mixing in the place of attention, trained from shards without the teacher.

`import arwkv_student` registers `ArwkvConfig` and `ArwkvForCausalLM` with transformers' Auto classes.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arwkv_student.model.time_mix_options import PRESETS, TimeMixOptions, preset_options

if TYPE_CHECKING:
    from arwkv_student.model.configuration import ArwkvConfig
    from arwkv_student.model.modeling import ArwkvForCausalLM

__all__ = ["PRESETS", "ArwkvConfig", "ArwkvForCausalLM", "TimeMixOptions", "preset_options"]


def __getattr__(name: str) -> Any:  # the type differs by name
    if name in ("ArwkvConfig", "ArwkvForCausalLM"):
        from arwkv_student.model import modeling

        return getattr(modeling, name)
    raise AttributeError(f"module 'arwkv_student' has no attribute {name!r}")


# The console script answers `--help` in under a second, which torch alone would take twice: its commands import the
# model, and so register it, when they use it. Everyone else gets the registration with the import.
if Path(sys.argv[0]).name != "student":
    import arwkv_student.model.modeling as _registered  # noqa: F401 -- for the registration
