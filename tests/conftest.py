"""Small real models and text, made here: nothing is downloaded."""

import json
import os
import sysconfig
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
DOCUMENTS = ("ast.py", "bisect.py", "calendar.py", "cmd.py", "code.py", "colorsys.py", "contextlib.py", "copy.py",
             "csv.py", "dis.py", "enum.py", "fnmatch.py", "fractions.py", "functools.py", "glob.py", "heapq.py",
             "io.py", "keyword.py", "queue.py", "shlex.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where workers share the tests, those of one file go to one worker, and the producer's: captures are made once."""
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group(str(folder if folder.name == "producer" else item.path)))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 20 documents of Python source, in field `text`, of ragged lengths."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [
        json.dumps({"text": (STANDARD_LIBRARY / name).read_text()[: 400 + 150 * i]}) for i, name in enumerate(DOCUMENTS)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """A Qwen2 folder with random fp32 weights (C=64, 2 layers, 4 heads, 2 KV heads, untied) and a 500-token BPE.

    The head has 544 rows: 44 of them are padding that no token uses.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("teacher") / "tiny-qwen2"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((json.loads(line)["text"] for line in tiny_corpus.read_text().splitlines()), trainer)
    assert bpe.get_vocab_size() == 500
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, pad_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=544,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
