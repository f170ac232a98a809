"""Shards made by a live transformers teacher: what the producer makes, and the teacher's own values to compare with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from arwkv_producer.check.samples import hybrid_logits, sampled_logits, sparse_logits
from arwkv_producer.numerics.sampling import draw, uniforms
from arwkv_store import (
    CaptureInfo,
    CorpusInfo,
    DatasetInfo,
    Sample,
    SparseLogits,
    TeacherInfo,
    TokenizerInfo,
    create_dataset,
)
from arwkv_store.format.vocabulary import vocabulary_hash
from arwkv_store.format.weights import hash_of_checkpoint

SAMPLES_PER_PART = 4


def documents(corpus: Path) -> list[str]:
    """The texts of a JSONL corpus."""
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


def tokenize(teacher: Path, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Each document's token ids, cut into chunks of at most `max_length`."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    chunks = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        chunks += [ids[at : at + max_length] for at in range(0, len(ids), max_length)]
    return [chunk for chunk in chunks if len(chunk) > 1]


@torch.no_grad()
def live_forward(model: PreTrainedModel, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], Any]:
    """Logits, attention outputs of every layer, and the hidden states transformers reports."""
    attention: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _module, _inputs, output: attention.append(output[0]))
        for layer in model.model.layers
    ]
    outputs = model(tokens_BT, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return outputs.logits, attention, outputs.hidden_states


def stored_logits(
    logprobs_TV: torch.Tensor, kind: str, key: int, *, top_k: int, draws: int, top_p: float = 0.9
) -> SparseLogits | None:
    """What the producer keeps of these distributions, by its own code."""
    if kind == "none":
        return None
    T = len(logprobs_TV)
    uniforms_TS = uniforms(torch.full((T,), key), torch.arange(T), draws)
    if kind == "sampled":
        return sampled_logits(draw(logprobs_TV.exp(), uniforms_TS).int().numpy())
    top, ids = logprobs_TV.topk(top_k, dim=-1)
    rest_TV = logprobs_TV.scatter(1, ids, -torch.inf)
    kept = ids.int().numpy(), top.numpy(), rest_TV.logsumexp(-1).numpy()
    if kind == "hybrid":
        return hybrid_logits(*kept, draw(rest_TV.exp(), uniforms_TS).int().numpy())
    return sparse_logits(*kept, top_p if kind == "adaptive" else None)


def capture(
    model: PreTrainedModel,
    sample_id: int,
    tokens: Sequence[int],
    *,
    vocab_size: int,
    top_k: int,
    hidden: str,
    logits: str = "top-k",
    draws: int = 50,
) -> Sample:
    """One sample as the producer would store it."""
    tokens_T = torch.tensor(tokens)
    dense, attention, streams = live_forward(model, tokens_T[None])
    logprobs_TV = dense[0, :, :vocab_size].float().log_softmax(-1)
    states = {
        "attention": {f"attn.{layer}": value[0] for layer, value in enumerate(attention)},
        "boundaries": {f"boundary.{layer}": value[0] for layer, value in enumerate(streams[:-1])},
        "final": {"final": streams[-1][0]},
        "none": {},
    }[hidden]
    kept = stored_logits(logprobs_TV, logits, sample_id, top_k=top_k, draws=draws)
    return Sample(
        sample_id=sample_id,
        tokens=tokens_T.int().numpy(),
        loss_mask=np.ones(len(tokens), bool),
        logits=kept,
        entropy=None if kept is None else -(logprobs_TV.exp() * logprobs_TV).sum(-1).numpy(),
        true_logprob=None if kept is None else logprobs_TV[:-1].gather(1, tokens_T[1:, None]).squeeze(1).numpy(),
        hidden={name: value.float().numpy().astype(ml_dtypes.bfloat16) for name, value in states.items()},
    )


def dataset_info(
    teacher: Path,
    model: PreTrainedModel,
    vocabulary: dict[str, int],
    capture: CaptureInfo,
    chunks: Sequence[Sequence[int]],
    samples_per_part: int,
) -> DatasetInfo:
    """The identity of a dataset of these samples."""
    config = model.config
    return DatasetInfo(
        teacher=TeacherInfo(
            model=teacher.name,
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            dtype="float32",
            block_form={"olmo2": "post-norm"}.get(config.model_type),
            weights_hash=hash_of_checkpoint(teacher, json.loads((teacher / "config.json").read_text())),
        ),
        tokenizer=TokenizerInfo(hash=vocabulary_hash(vocabulary), vocab_size=max(vocabulary.values()) + 1),
        vocab_size_padded=config.vocab_size,
        capture=capture,
        corpus=CorpusInfo(
            fingerprint="test",
            samples=len(chunks),
            tokens=sum(map(len, chunks)),
            samples_per_part=samples_per_part,
            parts=-(-len(chunks) // samples_per_part),
        ),
    )


def make_shards(
    teacher: Path,
    texts: Sequence[str],
    out: Path,
    *,
    max_length: int = 64,
    top_k: int = 16,
    hidden: str = "attention",
    limit: int | None = None,
    logits: str = "top-k",
    draws: int = 50,
    samples_per_part: int = SAMPLES_PER_PART,
) -> Path:
    """Capture `texts` with the teacher in fp32 into a dataset folder."""
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    vocabulary = AutoTokenizer.from_pretrained(teacher).get_vocab()
    vocab_size = max(vocabulary.values()) + 1
    chunks = tokenize(teacher, texts, max_length)[:limit]
    parts = [chunks[at : at + samples_per_part] for at in range(0, len(chunks), samples_per_part)]
    capture_info = CaptureInfo(
        logits=logits,
        top_k=top_k if logits in ("top-k", "adaptive", "hybrid") else None,
        top_p=0.9 if logits == "adaptive" else None,
        samples=draws if logits in ("sampled", "hybrid") else None,
        logits_codec=logits if logits in ("sampled", "hybrid", "none") else "exact",
        hidden_states=hidden,
        layers=tuple(range(model.config.num_hidden_layers)) if hidden in ("attention", "boundaries") else (),
        hidden_dtype="bf16" if hidden != "none" else "none",
        max_length=max_length,
    )
    info = dataset_info(teacher, model, vocabulary, capture_info, chunks, samples_per_part)
    writer = create_dataset(out, info)
    for part in writer.missing_parts():
        first = part * samples_per_part
        writer.write_shard(
            part,
            [
                capture(
                    model,
                    first + row,
                    tokens,
                    vocab_size=vocab_size,
                    top_k=top_k,
                    hidden=hidden,
                    logits=logits,
                    draws=draws,
                )
                for row, tokens in enumerate(parts[part])
            ],
        )
    return out
