"""Both stages on a tiny base of each family: how close the students come to their bases, beside Qwen2's.

    python benchmarks/families.py --json-out runs/bench/families.json

The bases have one size, as far as their families allow, and learn the same tokens in the same order. Each is its
student's teacher: its shards hold the same samples, and both stages read the same tokens. What is finished is not
repeated by the same command. A further seed of Qwen2 shows what chance changes.
"""

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from arwkv_kernels.memory import keep_freed_memory
from arwkv_kernels.precision import machine
from arwkv_store.commands.command_line import main
from figures import print_table, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from corpus import read_corpus
from teacher import TeacherConfig, encode, optimize, perplexity, qwen2_config, train_tokenizer, windows

REFERENCE = "qwen2"
OWN: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "mistral": {"sliding_window": 64},
    "olmo2": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
}  # fmt: skip
"""What a family has that Qwen2 lacks; q/k norms and the place of norms are in its classes."""
GOALS = ("relative error", "KL after stage 1", "KL after stage 2")
"""Compared with Qwen2's. The align loss is in the size of a base's attention outputs; its relative error is not."""


@dataclasses.dataclass(frozen=True)
class FamiliesConfig:
    """Compare the families of bases at one size and budget."""

    out: Path = Path("runs/families")
    """Folder of bases, shards and runs."""
    families: tuple[str, ...] = tuple(OWN)
    """Families beside Qwen2."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of weights and order: of Qwen2 all, of the others the first."""
    all_seeds: bool = False
    """Run every family with every seed."""
    preset: Literal["arwkv", "rad-rwkv7"] = "rad-rwkv7"
    """Which time mixer replaces the attention."""
    init: Literal["preset", "calibrated"] = "preset"
    """Where the time mixers start."""
    base_steps: int = 150
    """Steps of 4,096 tokens that a base learns."""
    steps: int = 80
    """Steps of each stage."""
    batch_size: int = 16
    """Samples of a step."""
    context: int = 128
    """Tokens of a sample."""
    heldout_tokens: int = 10_240
    """Tokens to evaluate on."""
    json_out: Path | None = None
    """Write the figures to this file."""
    json: bool = False
    """Print the figures as one JSON document."""


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """The text that all of them read."""

    tokenizer: Any  # transformers publishes no types
    train: Sequence[int]
    heldout: Sequence[int]


def measure(config: FamiliesConfig) -> dict[str, Any]:
    """Train every base and its student, and compare each with the mean of Qwen2's."""
    keep_freed_memory()
    ids = _read_text()
    rows = []
    for family, seed in _runs(config):
        rows.append({"base": family, "seed": seed, **_row(config, ids, family, seed)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    means = {goal: statistics.mean(row[goal] for row in rows if row["base"] == REFERENCE) for goal in GOALS}
    relative = [
        {name: row[name] for name in ("base", "seed")} | {goal: row[goal] / means[goal] for goal in GOALS}
        for row in rows
    ]
    if not config.json:
        print_table("Bases and their students", rows)
        print_table("Over the mean of Qwen2's", relative)
    results = {"machine": machine(), "rows": rows, "over_qwen2": relative}
    write_json(config.json_out, results)
    return results


def _runs(config: FamiliesConfig) -> Iterator[tuple[str, int]]:
    """(family, seed), Qwen2 first."""
    for family in (REFERENCE, *config.families):
        for seed in config.seeds if family == REFERENCE or config.all_seeds else config.seeds[:1]:
            yield family, seed


def _read_text() -> TokenIds:
    corpus = read_corpus(None)
    tokenizer = train_tokenizer(TeacherConfig.vocab_size, (document["text"] for document in corpus.train))
    return TokenIds(tokenizer, encode(tokenizer, corpus.train), encode(tokenizer, corpus.heldout))


def _row(config: FamiliesConfig, ids: TokenIds, family: str, seed: int) -> dict[str, Any]:
    folder = config.out / f"{family}-seed{seed}"
    base = _base(config, ids, family, seed, folder / "base")
    stages = _student(config, ids, folder, seed)
    lines = [json.loads(line) for line in (_run(config, folder) / "metrics.jsonl").read_text().splitlines()]
    aligned = [line for line in lines if line["stage"] == "align" and "loss" in line]
    errors = [value for name, value in aligned[-1].items() if name.startswith("relative_error_")]
    return {
        "parameters": base["parameters"],
        "base's perplexity": base["perplexity"],
        "KL without attention": _kl_without_attention(folder / "base", windows(ids.heldout, config.context, 10_240)),
        "align loss, first": aligned[0]["loss"],
        "last": aligned[-1]["loss"],
        "relative error": statistics.mean(errors),
        "KL after stage 1": stages["align"]["eval"]["kl"],
        "KL after stage 2": stages["distill"]["eval"]["kl"],
        "perplexity, student / base": stages["distill"]["eval"]["perplexity_ratio"],
    }


def _run(config: FamiliesConfig, folder: Path) -> Path:
    return folder / ("student" if config.init == "preset" else f"student-{config.init}")


def _base(config: FamiliesConfig, ids: TokenIds, family: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train the base in `folder`, unless it is there; its number of parameters and held-out perplexity."""
    import torch
    from transformers import AutoModelForCausalLM

    summary = folder / "base.json"
    if summary.exists():
        found: dict[str, Any] = json.loads(summary.read_text())
        return found
    settings = TeacherConfig(
        steps=config.base_steps, hidden_size=128, layers=3, context=config.context, seed=seed, out=str(folder)
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_shape(family, settings, ids.tokenizer))
    optimize(model, ids.train, settings)
    model.save_pretrained(folder)
    ids.tokenizer.save_pretrained(folder)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "perplexity": perplexity(model, windows(ids.heldout, config.context)),
    }
    summary.write_text(json.dumps(figures) + "\n")
    return figures


def _kl_without_attention(base: Path, heldout: Sequence[Sequence[int]]) -> float:
    """What a student loses whose mixers answer zero, in nats: how much a base needs its attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model, ids_BT = AutoModelForCausalLM.from_pretrained(base).eval(), torch.tensor(heldout)
    with torch.no_grad():
        whole_BTV = model(ids_BT, use_cache=False).logits.log_softmax(-1)
        for layer in model.model.layers:
            layer.self_attn.register_forward_hook(lambda _block, _inputs, output: (0 * output[0], *output[1:]))
        bare_BTV = model(ids_BT, use_cache=False).logits.log_softmax(-1)
    return float((whole_BTV.exp() * (whole_BTV - bare_BTV)).sum(-1).mean())


def _shape(family: str, settings: TeacherConfig, tokenizer: Any) -> Any:
    """The sizes of the example's Qwen2, in this family; its experts together are as wide for a token as its MLP."""
    from transformers import AutoConfig

    qwen2 = qwen2_config(settings, len(tokenizer), tokenizer.eos_token_id)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id",
             "rms_norm_eps", "initializer_range")  # fmt: skip
    sizes: Mapping[str, Any] = {name: getattr(qwen2, name) for name in names}
    more = {"head_dim": qwen2.hidden_size // qwen2.num_attention_heads, "pad_token_id": None}
    own = OWN.get(family, {})
    if experts := own.get("num_experts_per_tok"):
        more["moe_intermediate_size"] = math.ceil(qwen2.intermediate_size / experts / 16) * 16  # a kernel asks it
    return AutoConfig.for_model(family, **sizes | more | own)


def _student(config: FamiliesConfig, ids: TokenIds, folder: Path, seed: int) -> dict[str, Any]:
    """Make the shards and the student; the summary of each stage."""
    from arwkv_student.settings import TrainSettings
    from arwkv_student.training.pipeline import train
    from recipe_shards import Kept, make_datasets

    tokens = config.steps * config.batch_size * config.context
    kept = Kept("top-k", hidden="attention")
    make_datasets(_text(folder / "base", ids.train, config.context, tokens), {"train": kept}, folder)
    heldout = _text(folder / "base", ids.heldout, config.context, config.heldout_tokens)
    make_datasets(heldout, {"heldout": Kept("top-k", 256)}, folder)
    settings = TrainSettings(
        base=str(folder / "base"),
        shards=(str(folder / "train"),),
        eval_shards=str(folder / "heldout"),
        out=_run(config, folder),
        preset=config.preset,
        init=config.init,
        steps=config.steps,
        batch_size=config.batch_size,
        align_lr=3e-3,
        distill_lr=1e-3,
        seed=seed,
        workers=0,
    )
    stages: dict[str, Any] = train(settings)["stages"]
    return stages


def _text(base: Path, ids: Sequence[int], context: int, tokens: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe_shards import Text

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    vocabulary = AutoTokenizer.from_pretrained(base).get_vocab()
    return Text(base, model, vocabulary, windows(ids, context, tokens), context)


if __name__ == "__main__":
    main("families.py", "Both stages on a tiny base of each family.", measure)
