"""Our model classes, made when vLLM asks for one: a mixin before its own class for the architecture."""

from typing import Any

from vllm.model_executor.models.registry import ModelRegistry

from arwkv_producer.teacher.capture import CAPTURING, OVER_TOKENIZER
from arwkv_producer.teacher.capture_models import Capturing
from arwkv_producer.teacher.stock_models import OverTokenizer

MIXINS = {CAPTURING: Capturing, OVER_TOKENIZER: OverTokenizer}


def __getattr__(name: str) -> Any:
    """The class of that name, such as `CapturingQwen2ForCausalLM`; made once (PEP 562)."""
    for prefix, mixin in MIXINS.items():
        architecture = name.removeprefix(prefix)
        if architecture != name and architecture in ModelRegistry.models:
            own = ModelRegistry.models[architecture].load_model_cls()
            globals()[name] = made = type(name, (mixin, own), {"__module__": __name__})
            return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
