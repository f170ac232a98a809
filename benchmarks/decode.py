"""What a token costs once the text is long: students against their teacher with its key-value cache.

    OMP_NUM_THREADS=1 python benchmarks/decode.py [--hidden-size 512] [--layers 6] [--contexts 1024 …] [--json]

Random weights of Qwen2.5-0.5B's proportions. The teacher's cache is filled with random keys and values instead of being
computed; a student's state has the same size whatever it has read. The teacher gets the fastest form found: its cache
is written in place and its grouped heads attend without being repeated; `DynamicCache` is what transformers' `generate`
does. Contestants take turns within a round; a ratio is the median over rounds of the ratios within a round.

The second table reads texts of growing length into the state, each in a process of its own, and gives its peak memory.
"""

import dataclasses
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from arwkv_store.commands.command_line import main
from figures import write_json

HEAD_DIM = 64
# Beyond this the copies that DynamicCache makes of its cache would not fit beside it.
DYNAMIC_CACHE_LIMIT_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Decode tokens/s and memory of students against their teacher."""

    hidden_size: int = 512
    """Model width; heads of 64."""
    layers: int = 6
    """Layers."""
    vocabulary: int = 16384
    """Rows of the head, which is the embedding."""
    key_value_heads: int = 2
    """The teacher's key-value heads."""
    presets: tuple[str, ...] = ("arwkv", "rad-rwkv7")
    """Students."""
    contexts: tuple[int, ...] = (1024, 2048, 8192, 32768)
    """Tokens already read."""
    batches: tuple[int, ...] = (1, 16)
    """Sequences at a time."""
    tokens: int = 16
    """Tokens decoded per turn."""
    rounds: int = 7
    """Turns of each contestant."""
    memory_contexts: tuple[int, ...] = (1024, 8192, 32768, 131072)
    """Lengths of the texts of the second table."""
    json_out: Path | None = None
    """Write the figures there too."""
    json: bool = False
    """Print the figures as one JSON document."""


def decode(config: DecodeConfig) -> dict[str, Any]:
    """Run both parts and print their tables in Markdown."""
    speed = [_race(config, batch, context) for batch in config.batches for context in config.contexts]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        memory = list(processes.map(_memory, [config] * len(config.memory_contexts), config.memory_contexts))
    if not config.json:
        _print_tables(config, speed, memory)
    shape = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("json", "json_out")}
    results = {"config": shape, "threads": torch.get_num_threads(), "speed": speed, "memory": memory}
    write_json(config.json_out, results)
    return results


def _shared_shape(config: DecodeConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 4864 // 896 // 64 * 64,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.hidden_size // HEAD_DIM,
        "num_key_value_heads": config.key_value_heads,
        "max_position_embeddings": 1 << 18,
        "tie_word_embeddings": True,
    }


def _teacher(config: DecodeConfig) -> Any:  # transformers is untyped
    from transformers import AttentionInterface, AttentionMaskInterface, Qwen2Config, Qwen2ForCausalLM
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("grouped", _grouped_attention)
    AttentionMaskInterface.register("grouped", sdpa_mask)
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**_shared_shape(config))).eval()


def _student(config: DecodeConfig, preset: str) -> Any:
    from arwkv_student.model.configuration import ArwkvConfig
    from arwkv_student.model.modeling import ArwkvForCausalLM
    from arwkv_student.model.time_mix_options import BaseShape, options_as_dict, preset_options

    shape = _shared_shape(config)
    base = BaseShape(config.hidden_size, shape["num_attention_heads"], config.key_value_heads, HEAD_DIM)
    torch.manual_seed(0)
    options = options_as_dict(preset_options(preset, base))
    return ArwkvForCausalLM(ArwkvConfig(**shape, preset=preset, time_mix=options)).eval()


def _grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """One query token [B, H, 1, D] against keys and values [B, G, T, D], each read once for its H / G query heads."""
    B, H, _, D = query.shape
    groups = key.shape[1]
    y = F.scaled_dot_product_attention(query.view(B, groups, H // groups, D), key, value, scale=scaling)
    return y.reshape(B, 1, H, D), None


def _in_place_layer(keys: Tensor, values: Tensor, used: int) -> Any:
    """A cache layer over buffers that have room for the tokens to come."""
    from transformers.cache_utils import DynamicLayer

    class InPlaceLayer(DynamicLayer):  # type: ignore[misc] # transformers is untyped
        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            first = self.keys.shape[-2]
            end = first + key_states.shape[-2]
            keys[:, :, first:end], values[:, :, first:end] = key_states, value_states
            self.keys, self.values = keys[:, :, :end], values[:, :, :end]
            return self.keys, self.values

    layer = InPlaceLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys[:, :, :used], values[:, :, :used]
    return layer


def _race(config: DecodeConfig, batch: int, context: int) -> dict[str, Any]:
    """Tokens/s of each contestant and the ratios to the teacher."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    from arwkv_student.model.cache import ArwkvCache

    teacher = _teacher(config)
    shape = (batch, config.key_value_heads, context + config.tokens, HEAD_DIM)
    buffers = [(torch.randn(shape), torch.randn(shape)) for _ in range(config.layers)]
    cache_bytes = sum(2 * keys[:, :, :context].numel() * keys.element_size() for keys, _ in buffers)

    def in_place() -> DynamicCache:
        cache = DynamicCache()
        cache.layers = [_in_place_layer(keys, values, context) for keys, values in buffers]
        return cache

    def grown() -> DynamicCache:
        cache = DynamicCache()
        cache.layers = [DynamicLayer() for _ in buffers]
        for layer, (keys, values) in zip(cache.layers, buffers, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys[:, :, :context], values[:, :, :context]
        return cache

    contestants: dict[str, Callable[[], float]] = {
        "teacher": lambda: _turn(teacher, "grouped", in_place(), batch, config.tokens)
    }
    if cache_bytes <= DYNAMIC_CACHE_LIMIT_BYTES:
        contestants["teacher, DynamicCache"] = lambda: _turn(teacher, "sdpa", grown(), batch, config.tokens)
    students = {preset: _student(config, preset) for preset in config.presets}
    states = {preset: student.prefill(_tokens(config, batch, 8)) for preset, student in students.items()}
    for preset, student in students.items():
        contestants[preset] = lambda student=student, preset=preset: _turn(
            student, None, ArwkvCache.from_state_dict(student.config, states[preset].state_dict()), batch, config.tokens
        )
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(config.rounds + 1):
        for name, turn in contestants.items():
            taken = turn()
            if number:
                seconds[name].append(taken)
    rates = {name: batch * config.tokens / statistics.median(taken) for name, taken in seconds.items()}
    ratios = {
        name: statistics.median(own / taken for own, taken in zip(seconds["teacher"], seconds[name], strict=True))
        for name in contestants
    }
    return {"batch": batch, "context": context, "cache_bytes": cache_bytes, "tokens_per_s": rates, "ratio": ratios}


def _tokens(config: DecodeConfig, batch: int, length: int) -> Tensor:
    return torch.randint(0, config.vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _turn(model: Any, attention: str | None, cache: Any, batch: int, tokens: int) -> float:
    """Seconds of `tokens` greedy steps."""
    if attention is not None:
        model.config._attn_implementation = attention
    ids_B1 = torch.zeros(batch, 1, dtype=torch.long)
    begin = time.perf_counter()
    for _ in range(tokens):
        ids_B1 = model(input_ids=ids_B1, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return time.perf_counter() - begin


def _memory(config: DecodeConfig, context: int) -> dict[str, Any]:
    """Bytes of the state after `context` tokens, and the process's peak memory before and after reading them."""
    student = _student(config, config.presets[0])
    tokens_1T = _tokens(config, 1, context)
    with torch.inference_mode():
        student.prefill(tokens_1T[:, :2048])
        before = _peak_bytes()
        begin = time.perf_counter()
        cache = student.prefill(tokens_1T)
        seconds = time.perf_counter() - begin
        _turn(student, None, cache, 1, config.tokens)
    state = sum(x.numel() * x.element_size() for x in cache.state_dict().values())
    teacher = 2 * config.layers * config.key_value_heads * HEAD_DIM * 4 * context
    return {
        "context": context,
        "state_bytes": state,
        "teacher_cache_bytes": teacher,
        "peak_bytes_first_chunk": before,
        "peak_bytes": _peak_bytes(),
        "prefill_tokens_per_s": context / seconds,
    }


def _peak_bytes() -> int:
    """This process's largest resident memory. getrusage's would begin with that of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _print_tables(config: DecodeConfig, speed: list[dict[str, Any]], memory: list[dict[str, Any]]) -> None:
    names = ["teacher", "teacher, DynamicCache", *config.presets]
    print(f"{json.dumps(_shared_shape(config))}, fp32, {torch.get_num_threads()} threads\n")
    columns = [f"{name}{'' if name == 'teacher' else ' (×)'}" for name in names]
    print(f"| batch | context | KV cache, MiB | {' | '.join(columns)} |")
    print("|---" * (len(names) + 3) + "|")
    for row in speed:
        cells = [_cell(row, name) for name in names]
        cache = f"{row['cache_bytes'] / 2**20:,.0f}"
        print(f"| {row['batch']} | {row['context']:,} | {cache} | {' | '.join(cells)} |")
    print(f"\n| text, tokens ({config.presets[0]}) | state, MiB | KV cache, MiB | peak memory, MiB | read, tokens/s |")
    print("|---|---|---|---|---|")
    for row in memory:
        sizes = [row[name] / 2**20 for name in ("state_bytes", "teacher_cache_bytes", "peak_bytes")]
        cells = [f"{sizes[0]:.2f}", f"{sizes[1]:,.0f}", f"{sizes[2]:,.0f}", f"{row['prefill_tokens_per_s']:,.0f}"]
        print(f"| {row['context']:,} | {' | '.join(cells)} |")


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["tokens_per_s"]:
        return "–"
    ratio = "" if name == "teacher" else f" ({row['ratio'][name]:.2f})"
    return f"{row['tokens_per_s'][name]:,.0f}{ratio}"


if __name__ == "__main__":
    main(
        "decode",
        "Decode tokens/s and memory of students against their teacher.",
        {"run": decode},
        ["run", *sys.argv[1:]],
    )
