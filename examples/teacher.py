"""Train a small real teacher: a Qwen2-architecture model with its own BPE tokenizer, on text that is on the machine.

    python examples/teacher.py --out runs/teacher

By default the text is the Python standard library's sources; every twentieth file or so is held out. The folder that
comes out is an ordinary Hugging Face checkpoint. The same command with the same settings finds its earlier result and
returns at once.

Shape legend: B batch, T time, V vocabulary.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pace
from arwkv_kernels.memory import keep_freed_memory
from arwkv_kernels.precision import compute_dtype, machine
from arwkv_store.commands.command_line import main
from arwkv_store.commands.progress import Progress
from corpus import Corpus, read_corpus

STEP_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Train a small Qwen2 teacher and its tokenizer on real text."""

    out: str = "runs/teacher"
    """Folder of the checkpoint and of teacher.json, its summary."""
    text: str | None = None
    """Glob of text files (** for subfolders); default: the Python standard library's sources."""
    steps: int = 750
    """Optimizer steps."""
    step_tokens: int = STEP_TOKENS
    """Tokens of a step."""
    vocab_size: int = 2000
    """Token ids of the tokenizer; the head is padded to the next multiple of 64, as the large models' are."""
    hidden_size: int = 192
    """Model width."""
    layers: int = 4
    """Decoder layers."""
    heads: int | None = None
    """Attention heads, each with a key and value of its own; default: one for 64 of the width, all with one."""
    context: int = 128
    """Tokens of a training sequence."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, cosine to zero."""
    seed: int = 0
    """Seed of weights and data order."""
    json: bool = False
    """Print the summary as one JSON document."""


def train_teacher(config: TeacherConfig) -> dict[str, Any]:
    """Train, or return the summary of the earlier run with the same settings and text."""
    out = Path(config.out)
    corpus = read_corpus(config.text)
    fingerprint = _fingerprint(config, corpus)
    summary_path = out / "teacher.json"
    if summary_path.exists():
        summary: dict[str, Any] = json.loads(summary_path.read_text())
        if summary["fingerprint"] == fingerprint:
            _print_summary(summary, out)
            return summary
    out.mkdir(parents=True, exist_ok=True)
    summary_path.unlink(missing_ok=True)
    summary = {"fingerprint": fingerprint, **_train(config, corpus, out)}
    summary_path.write_text(json.dumps(summary, indent=2) + "\n")
    _print_summary(summary, out)
    return summary


def _fingerprint(config: TeacherConfig, corpus: Corpus) -> str:
    digest = hashlib.sha256()
    settings = dataclasses.asdict(config) | {"out": "", "json": False}
    for part in (settings, corpus.train, corpus.heldout):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def _train(config: TeacherConfig, corpus: Corpus, out: Path) -> dict[str, Any]:
    import torch
    from transformers import Qwen2ForCausalLM

    keep_freed_memory()
    tokenizer = train_tokenizer(config.vocab_size, (document["text"] for document in corpus.train))
    tokenizer.save_pretrained(out)
    train_ids = encode(tokenizer, corpus.train)
    heldout = windows(encode(tokenizer, corpus.heldout), config.context)
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(qwen2_config(config, len(tokenizer), tokenizer.eos_token_id))
    started = time.monotonic()
    tokens = optimize(model, train_ids, config)
    seconds = time.monotonic() - started
    model.save_pretrained(out)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_files": len(corpus.train),
        "heldout_files": len(corpus.heldout),
        "train_tokens_available": len(train_ids),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / seconds),
        "heldout_perplexity": round(perplexity(model, heldout), 3),
        "bigram_perplexity": round(bigram_perplexity(train_ids, heldout, len(tokenizer)), 3),
        "machine": machine(),
    }


def qwen2_config(config: TeacherConfig, tokens: int, end: int) -> Any:
    """The model's shape, for a tokenizer of so many `tokens` whose end-of-text token is `end`."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=math.ceil(tokens / 64) * 64,
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 8 // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads or max(1, config.hidden_size // 64),
        num_key_value_heads=config.heads or 1,
        max_position_embeddings=max(2048, config.context),
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )


def train_tokenizer(vocab_size: int, documents: Iterable[str]) -> Any:  # transformers publishes no types
    """Qwen2's tokenizer with a vocabulary of these documents.

    AutoTokenizer gives every Qwen2 checkpoint that class, with its own way to split text: with a tokenizer of another
    kind the model would be trained on other ids than those it is fed later.
    """
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer().train_new_from_iterator(documents, vocab_size, show_progress=False)


def encode(tokenizer: Any, documents: Sequence[dict[str, str]]) -> list[int]:
    """One stream of token ids, the documents in a fixed shuffled order, each closed by the end-of-text token."""
    order = list(documents)
    random.Random(0).shuffle(order)
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch([document["text"] for document in order]):
        ids += encoding.ids
        ids.append(tokenizer.eos_token_id)
    return ids


def _batches(ids: Sequence[int], config: TeacherConfig) -> Iterator[Any]:
    """Endless [B, T+1] batches of B·T = step_tokens at random offsets."""
    import torch

    stream, context = torch.tensor(ids), config.context
    batch = max(1, config.step_tokens // context)
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        starts_B1 = torch.randint(len(stream) - context - 1, (batch, 1), generator=generator)
        yield stream[starts_B1 + torch.arange(context + 1)]


def optimize(model: Any, ids: Sequence[int], config: TeacherConfig) -> int:
    """Train on the stream of token ids as the settings say; returns the number of tokens read."""
    import torch
    from torch.nn.functional import cross_entropy

    model.set_attn_implementation(pace.fastest_attention())
    rest = {"betas": (0.9, 0.95), "weight_decay": 0.05, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, **rest)
    dtype = compute_dtype(device="cpu")
    tokens = 0
    with Progress("teacher", config.steps * config.step_tokens) as progress:
        for step, ids_BT in enumerate(itertools.islice(_batches(ids, config), config.steps)):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits_BTV = model(ids_BT[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = _rate(config, step)
            optimizer.step()
            optimizer.zero_grad()
            tokens += ids_BT.numel() - len(ids_BT)
            progress.advance(ids_BT.numel() - len(ids_BT), note=f"loss {loss.item():.3f}")
    return tokens


def _rate(config: TeacherConfig, step: int) -> float:
    warmup, cosine = min(1.0, (step + 1) / 40), 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
    return config.learning_rate * warmup * cosine


def windows(ids: Sequence[int], context: int, limit: int = 120_000) -> list[Sequence[int]]:
    """Stretches of `context` ids, evenly spread, of at most `limit` ids together."""
    n = max(min(limit, len(ids)) // context, 1)
    starts = [len(ids) * i // n for i in range(n)]
    return [ids[start : start + context] for start in starts]


def perplexity(model: Any, heldout: Sequence[Sequence[int]]) -> float:
    """Of windows of one length."""
    import torch
    from torch.nn.functional import cross_entropy

    nll, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(heldout), 32):
            ids_BT = torch.tensor(heldout[start : start + 32])
            logits_BTV = model(ids_BT[:, :-1], use_cache=False).logits
            nll += cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum").item()
            count += ids_BT[:, 1:].numel()
    return math.exp(nll / count)


def bigram_perplexity(train: Sequence[int], heldout: Sequence[Sequence[int]], vocab_size: int) -> float:
    """Held-out perplexity of an interpolated bigram model, its interpolation weight chosen on the held-out text.

    p(b | a) = (n(a, b) + m·p(b)) / (n(a) + m), with add-one unigrams p(b); the most favourable m is taken, so that the
    comparison flatters the bigram, not the teacher.
    """
    unigrams = Counter(train)
    bigrams = Counter(itertools.pairwise(train))
    pairs = Counter(pair for window in heldout for pair in itertools.pairwise(window))
    total = len(train) + vocab_size

    def nll(weight: float) -> float:
        return -sum(
            count * math.log((bigrams[a, b] + weight * (unigrams[b] + 1) / total) / (unigrams[a] + weight))
            for (a, b), count in pairs.items()
        ) / max(1, sum(pairs.values()))

    return math.exp(min(nll(weight) for weight in (1, 3, 10, 30, 100)))


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    print(
        f"teacher: {out}: {summary['parameters']:,} parameters, {summary['tokens']:,} tokens in "
        f"{summary['seconds']} s; held-out perplexity {summary['heldout_perplexity']} "
        f"(bigram {summary['bigram_perplexity']})",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main("teacher.py", "Train a small real teacher on real text.", train_teacher)
