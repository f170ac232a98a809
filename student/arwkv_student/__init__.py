"""The student: RWKV-7 time mixing instead of attention, trained from shards without the teacher.

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


# torch alone takes two seconds to import, but `--help` must answer in under a second. So the console script's commands
# import the model, which registers it, when they use it. All other imports register it at once.
if Path(sys.argv[0]).name != "student":
    import arwkv_student.model.modeling as _registered  # noqa: F401 -- for the registration
