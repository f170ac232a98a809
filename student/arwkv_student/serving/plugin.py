"""vLLM's plugin entry point: with it `LLM(RUN)` and vLLM's server run students.

Every process that starts vLLM in this environment calls `register`, so it loads no model: the class is registered by
module path. transformers learns of the configuration from `import arwkv_student`, which comes first.
"""

import importlib
import sys
from typing import Any

ARCHITECTURE = "ArwkvForCausalLM"
_LLVMLITE = "llvmlite.binding.ffi"


def register() -> None:
    """Make vLLM know students (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.served_student:ServedStudent")
    if _LLVMLITE in sys.modules:
        let_modules_be_inspected()


def let_modules_be_inspected() -> None:
    """vLLM's CPU worker asks what every module holds for `__dict__`; llvmlite's library answers with a C function.

    Loads llvmlite, where numba is installed. Afterwards a further engine can start in the same process.
    """
    try:
        library = type(importlib.import_module(_LLVMLITE).lib)
    except ImportError:
        return
    answer = library.__getattr__
    if answer.__module__ == __name__:
        return  # done before

    def inspectable(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(self, name)

    library.__getattr__ = inspectable
