"""Where a student can run, and the reasons why it cannot run elsewhere."""

from pathlib import Path

from arwkv_store.errors import NotFound
from arwkv_student.export.gguf_obstacles import obstacles
from arwkv_student.export.gguf_tokenizer import GgufTokenizer
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.loading import kept_attention

CONCURRENT_SEQUENCES = (
    "Start llama.cpp with `-np 1` (Ollama with `OLLAMA_NUM_PARALLEL=1`), because it computes several sequences of one "
    "batch wrongly"
)


def runtimes(folder: Path) -> dict[str, list[str]]:
    """By runtime, the reasons why it cannot run the folder's model; none where it can.

    Of a model of preset `transformer` only transformers is named: the others run it where they know its family.
    """
    found: dict[str, list[str]] = {"transformers": []}
    if not kept_attention(folder):
        experts = ArwkvConfig.from_pretrained(folder).architecture.experts is not None
        found["vLLM"] = ["mixtures of experts were not verified there"] if experts else []
        found["llama.cpp"] = llama_cpp_obstacles(folder)
    return found


def llama_cpp_obstacles(folder: Path) -> list[str]:
    """Every reason why llama.cpp cannot compute a student; empty where it can."""
    found = obstacles(ArwkvConfig.from_pretrained(folder))
    try:
        return [*found, *GgufTokenizer.open(folder).obstacles()]
    except NotFound as error:
        return [*found, str(error)]
