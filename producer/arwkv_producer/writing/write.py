"""`producer write`: the teacher's answers to the prompts of a file, as text for a capture."""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from arwkv_producer.teacher.engine_faults import engine_faults
from arwkv_producer.teacher.int8_products import multiplies_int8
from arwkv_producer.teacher.teacher import Teacher, find_teacher, native_dtype, require_weights, weights_hash
from arwkv_producer.teacher.vllm_setup import EngineConfig
from arwkv_producer.teacher.writing_engine import SampledText, Sampling, WritingEngine
from arwkv_producer.text.reading import read_records
from arwkv_producer.text.sources import find_sources
from arwkv_producer.text.tokenizer import load_tokenizer, real_vocab_size
from arwkv_producer.write_config import WriteConfig
from arwkv_store.commands.progress import Progress, working
from arwkv_store.errors import UsageError
from arwkv_store.places.answer_file import AnswerFile, answer_file
from arwkv_store.text.prompts import Prompt, fingerprint, prompts

RECORDED = ("samples", "max_new_tokens", "temperature", "top_p", "seed")


def write(config: WriteConfig) -> dict[str, Any]:
    """Write `config.out`, or continue it; returns how many answers it holds, and how many ended by themselves.

    Each line is an answer's record (see `Prompt.answered`) with `sample`, its number among its prompt's answers, and
    `ended`. FILE.origin names the teacher, by its weights' hash or its revision.
    """
    teacher = find_teacher(config.teacher)
    require_weights(teacher)
    with working("loading the tokenizer"):
        tokenizer = load_tokenizer(teacher)
    found = list(itertools.islice(_prompts(config, tokenizer), config.prompts))
    if not found:
        raise UsageError(f"--data {' '.join(config.data)}: no prompt in it; give records with a prompt or messages")
    asked = [_ids(prompt, tokenizer) for prompt in found for _ in range(config.samples)]
    length = _length(config, teacher, max(map(len, asked)))
    dtype = native_dtype(teacher) if config.dtype == "auto" else config.dtype
    with working("hashing the teacher's weights"):
        author = weights_hash(teacher) or f"{teacher.name}@{teacher.revision}"
    origin = {
        "command": "producer write",
        "written_by": author,
        "prompts": fingerprint(found),
        "dtype": dtype,
        **{name: getattr(config, name) for name in RECORDED},
    }
    with answer_file(config.out, origin) as file:
        if not file.complete:
            with _engine(config, teacher, dtype, length, real_vocab_size(tokenizer)) as engine:
                _write(file, engine, found, asked, tokenizer, config)
    with config.out.open() as lines:
        ended = sum(json.loads(line)["ended"] for line in lines)
    return {"out": str(config.out), "answers": len(asked), "ended": ended, "written_by": author}


def _prompts(config: WriteConfig, tokenizer: Any) -> Iterator[Prompt]:
    records = read_records(find_sources(config.data, config.split).sources, "text")
    return prompts(((record.where, record.fields) for record in records), tokenizer)


def _ids(prompt: Prompt, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(prompt.text, add_special_tokens=prompt.turns is None, verbose=False)["input_ids"]
    return ids or [tokenizer.eos_token_id]


def _length(config: WriteConfig, teacher: Teacher, longest: int) -> int:
    """Most tokens of a prompt with its answer. Raises UsageError where the longest does not fit."""
    needed, most = longest + config.max_new_tokens, min(config.max_length or teacher.max_length, teacher.max_length)
    if needed > most:
        raise UsageError(
            f"--max-new-tokens {config.max_new_tokens}: with the longest prompt ({longest} tokens) it exceeds "
            f"{most} tokens; give a smaller number, or leave that prompt out"
        )
    return config.max_length or needed


@contextlib.contextmanager
def _engine(config: WriteConfig, teacher: Teacher, dtype: str, length: int, vocab_size: int) -> Iterator[WritingEngine]:
    print(f"starting vLLM with {teacher.name} in {dtype}", file=sys.stderr)
    settings = EngineConfig(
        model=teacher.model,
        architecture=teacher.architecture,
        head_size=teacher.head_size,
        head_dtype=teacher.head_dtype,
        has_text_part=teacher.has_text_part,
        multiplies_int8=multiplies_int8(teacher.quantization),
        revision=teacher.revision,
        dtype=dtype,
        max_length=length,
        step_tokens=config.step_tokens,
        tensor_parallel=config.tensor_parallel,
        gpu_memory_fraction=config.gpu_memory_fraction,
        verbose=config.verbose,
    )
    with engine_faults(teacher.name):
        engine = WritingEngine(
            settings, Sampling(config.temperature, config.top_p, config.max_new_tokens, config.seed), vocab_size
        )
    try:
        yield engine
    finally:
        engine.close()


def _write(
    file: AnswerFile,
    engine: WritingEngine,
    found: Sequence[Prompt],
    asked: Sequence[Sequence[int]],
    tokenizer: Any,
    config: WriteConfig,
) -> None:
    with Progress("write", None) as progress:
        while file.lines < len(asked):
            numbers = range(file.lines, min(file.lines + config.batch_size, len(asked)))
            texts = engine.write([asked[number] for number in numbers], numbers)
            records = []
            for number, text in zip(numbers, texts, strict=True):
                prompt, sample = found[number // config.samples], number % config.samples
                records.append(_record(prompt, text, sample, tokenizer))
            file.add(records)
            progress.advance(
                sum(len(text.token_ids) for text in texts), note=f"{file.lines:,} of {len(asked):,} answers"
            )
    file.finish()


def _record(prompt: Prompt, text: SampledText, sample: int, tokenizer: Any) -> dict[str, Any]:
    said = tokenizer.decode(text.token_ids, skip_special_tokens=prompt.turns is not None)
    return prompt.answered(said, (tokenizer.eos_token or "") if text.ended else "", sample=sample, ended=text.ended)
