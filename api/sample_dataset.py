"""A small real dataset to look at: a text's own bytes, and the byte-pair statistics of that text as its teacher.

python sample_dataset.py FOLDER [TEXT]    writes FOLDER unless it is complete; TEXT defaults to a module of Python's own
"""

import ast
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

VOCAB_SIZE = 256
LENGTH = 256
SAMPLES_PER_PART = 16
TOP_K = 32


def main(folder: Path, text: Path) -> None:
    """Write the dataset and its tokenizer.json."""
    tokens = np.frombuffer(text.read_bytes(), np.uint8).astype(np.int32)
    tokens = tokens[: len(tokens) // LENGTH * LENGTH]
    logprobs_VV = bigram_logprobs(tokens)
    vocabulary = {character: token_id for token_id, character in enumerate(byte_characters())}
    samples = len(tokens) // LENGTH
    info = DatasetInfo(
        teacher=TeacherInfo(
            model="byte bigrams", model_type="bigram", hidden_size=VOCAB_SIZE, num_hidden_layers=1, dtype="float32"
        ),
        tokenizer=TokenizerInfo(hash=vocabulary_hash(vocabulary), vocab_size=VOCAB_SIZE),
        vocab_size_padded=VOCAB_SIZE,
        capture=CaptureInfo(logits="top-k", top_k=TOP_K, max_length=LENGTH),
        corpus=CorpusInfo(
            fingerprint=hashlib.sha256(tokens.tobytes()).hexdigest(),
            samples=samples,
            tokens=len(tokens),
            samples_per_part=SAMPLES_PER_PART,
            parts=-(-samples // SAMPLES_PER_PART),
            description=text.name,
        ),
        command=f"sample_dataset.py {folder.name} {text.name}",
        created_by="sample_dataset.py",
    )
    writer = create_dataset(folder, info)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(vocabulary)))
    for part in writer.missing_parts():
        ids = range(part * SAMPLES_PER_PART, min((part + 1) * SAMPLES_PER_PART, samples))
        writer.write_shard(
            part, [sample(i, tokens[i * LENGTH : (i + 1) * LENGTH], logprobs_VV, text.name) for i in ids]
        )


def bigram_logprobs(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """[V, V] log-probability of the next byte by the byte before, with a thousandth of a count added to each pair."""
    counts_VV = np.full((VOCAB_SIZE, VOCAB_SIZE), 1e-3)
    np.add.at(counts_VV, (tokens[:-1], tokens[1:]), 1.0)
    logprobs_VV: NDArray[np.float64] = np.log(counts_VV / counts_VV.sum(1, keepdims=True))
    return logprobs_VV.astype(np.float32)


def sample(sample_id: int, tokens: NDArray[np.int32], logprobs_VV: NDArray[np.float32], source: str) -> Sample:
    """One stretch of the text with what the bigrams say at each byte."""
    logprobs_TV = logprobs_VV[tokens]
    ids_TK = np.argsort(-logprobs_TV, axis=1, kind="stable")[:, :TOP_K].astype(np.int32)
    kept_TK = np.take_along_axis(logprobs_TV, ids_TK, axis=1)
    tail = np.log1p(-np.minimum(np.exp(kept_TK.astype(np.float64)).sum(1), 1 - 1e-9)).astype(np.float32)
    return Sample(
        sample_id=sample_id,
        tokens=tokens,
        loss_mask=np.ones(LENGTH, np.bool_),
        source=source,
        logits=SparseLogits(np.full(LENGTH, TOP_K, np.int32), ids_TK.reshape(-1), kept_TK.reshape(-1), tail),
        entropy=-(np.exp(logprobs_TV) * logprobs_TV).sum(1, dtype=np.float64).astype(np.float32),
        true_logprob=logprobs_TV[np.arange(LENGTH - 1), tokens[1:]],
    )


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level tokenizer, as GPT-2 assigned them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(VOCAB_SIZE, 2 * VOCAB_SIZE))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(VOCAB_SIZE)]


def tokenizer(vocabulary: dict[str, int]) -> dict[str, object]:
    """A tokenizer.json of single bytes: byte pairs without any merge."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ast.__file__))
