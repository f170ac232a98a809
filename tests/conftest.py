"""Small real models and text, made here: nothing is downloaded."""

import atexit
import gc
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from preloaded import preloaded

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
DOCUMENTS = ("ast.py", "bisect.py", "calendar.py", "cmd.py", "code.py", "colorsys.py", "contextlib.py", "copy.py",
             "csv.py", "dis.py", "enum.py", "fnmatch.py", "fractions.py", "functools.py", "glob.py", "heapq.py",
             "io.py", "keyword.py", "queue.py", "shlex.py")  # fmt: skip


LONGEST = ("producer", "kernels/test_triton.py", "transformers", "kernels/test_wkv7.py", "api/test_page.py")
"""Groups of tests that begin first where workers share the tests, so that none is left alone with a long one."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the tests, those of one file go to one worker.

    So do the producer's, whose captures are made once, with whatever else starts Python with vLLM loaded; and what
    starts it with transformers loaded.
    """
    here = Path(__file__).parent
    groups: dict[pytest.Item, str] = {}
    for item in items:
        groups[item] = "producer" if item.path.parent == here / "producer" else str(item.path.relative_to(here))
        for fixture, group in (("python_with_vllm", "producer"), ("python_with_transformers", "transformers")):
            if fixture in getattr(item, "fixturenames", ()):
                groups[item] = group
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Leave what is loaded out of garbage collections: each would take half a second, and trainers ask for many."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else nanobind calls them leaked


@pytest.fixture(scope="session")
def python_with_vllm() -> Iterator[list[str]]:
    """Words that start Python with what a capture loads first."""
    with preloaded("loaded_vllm", OMP_NUM_THREADS="1") as python:
        yield python


@pytest.fixture(scope="session")
def python_with_transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Words that start Python with what transformers loads to make, run and train a model; nothing of ours."""
    modules = ("transformers.models.auto.modeling_auto", "transformers.models.qwen2.modeling_qwen2")
    environment = {"OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))}
    with preloaded("torch", *modules, "transformers.trainer", **environment) as python:
        yield python


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
