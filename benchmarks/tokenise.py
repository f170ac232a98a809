"""`producer tokenise`: tokens a second of one core, memory against the size of the corpus, a second start.

Example: python benchmarks/tokenise.py --tokens 20000000 100000000

Documents are made of lines of the Python standard library's sources, about 2,000 characters each. Without --teacher
a byte-level BPE of 32,768 tokens is trained on them. Speed is tokens over the processor time of all processes, so that
other work on the machine changes it less, also without the processor time of a second start, which finds all done.
Memory is the largest sum of the processes' shares (PSS). Ranks then read the dataset as `producer generate` does, all
at once, each parts of its own: what they read, what of it came from the disk, and their memory without the imports.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from figures import print_table, write_json

DOCUMENT_CHARACTERS = 2000
CHARACTERS_PER_TOKEN = 3.4
"""Of this text, about."""
LOOK_EVERY_S = 0.25
RANKS, PARTS_OF_A_RANK = 8, 2
RANK = """
import json, sys
from arwkv_producer.tokens.stored import stored_corpus
def said(file, name):
    return next(int(line.split()[1]) for line in open(f"/proc/self/{file}") if line.startswith(name + ":"))
memory, read, disk = said("status", "VmRSS"), said("io", "rchar"), said("io", "read_bytes")
data, rank, ranks, parts = sys.argv[1], *map(int, sys.argv[2:])
corpus = stored_corpus([data])
rows = corpus.dataset.shard_rows
tokens = 0
for part in list(range(rank, len(rows), ranks))[:parts]:
    first = sum(rows[:part])
    tokens += sum(len(corpus[sample].tokens) for sample in range(first, first + rows[part]))
found = {"tokens": tokens, "read": said("io", "rchar") - read, "from disk": said("io", "read_bytes") - disk}
print(json.dumps(found | {"memory": 1024 * (said("status", "VmHWM") - memory)}))
"""


def lines_of_sources() -> list[str]:
    """Lines of the standard library's modules."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [line for file in files for line in file.read_text(errors="replace").splitlines(keepends=True)]


def trained_teacher(folder: Path, lines: list[str]) -> Path:
    """A folder with a configuration and a byte-level BPE, and no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_768, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(lines, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    Qwen2Config(vocab_size=32_768, architectures=["Qwen2ForCausalLM"]).save_pretrained(folder)
    return folder


def write_corpus(path: Path, lines: list[str], tokens: int) -> None:
    """JSON lines of about so many tokens."""
    chance = random.Random(0)
    left = int(tokens * CHARACTERS_PER_TOKEN)
    with path.open("w") as file:
        while left > 0:
            text, at = "", chance.randrange(len(lines))
            while len(text) < DOCUMENT_CHARACTERS:
                text += lines[at % len(lines)]
                at += 1 if chance.random() < 0.9 else chance.randrange(len(lines))
            left -= len(text)
            file.write(json.dumps({"text": text}) + "\n")


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command of ours; its summary, seconds, processor seconds and peak of memory."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = "from arwkv_producer.cli import main; main()"
    run = subprocess.Popen([sys.executable, "-c", code, *command, "--json"], stdout=subprocess.PIPE, text=True)
    peak = largest = 0
    while run.poll() is None:
        shares = [share_bytes(process) for process in family(run.pid)]
        peak, largest = max(peak, sum(shares)), max(largest, *shares, 0)
        time.sleep(LOOK_EVERY_S)
    assert run.returncode == 0, command
    assert run.stdout is not None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    summary = json.loads(run.stdout.read())
    return {**summary, "wall_s": time.monotonic() - began, "processor_s": processor_s, "peak": peak, "largest": largest}


def family(process: int) -> list[int]:
    """A process and those below it."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(one for child in children for one in family(int(child)))]


def share_bytes(process: int) -> int:
    """The process's memory; what it shares with others is divided among them."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(rollup.split("Pss:")[1].split()[0]) * 1024 if "Pss:" in rollup else 0


def read_by_ranks(out: Path) -> dict[str, int]:
    """Sums over all ranks, which run at once; the largest memory."""
    words, how_many = [sys.executable, "-c", RANK, str(out)], [str(RANKS), str(PARTS_OF_A_RANK)]
    ranks = [
        subprocess.Popen([*words, str(rank), *how_many], stdout=subprocess.PIPE, text=True) for rank in range(RANKS)
    ]
    found = [json.loads(rank.communicate()[0]) for rank in ranks]
    sums = {name: sum(one[name] for one in found) for name in ("tokens", "read", "from disk")}
    return sums | {"memory": max(one["memory"] for one in found)}


def library_speed(teacher: Path, corpus: Path) -> float:
    """Tokens per second of processor time of `tokenizers` alone, on the corpus's beginning."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.no_truncation()
    with corpus.open() as file:
        texts = [json.loads(line)["text"] for line in islice(file, 2048)]
    began = time.process_time()
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    return tokens / (time.process_time() - began)


def row(folder: Path, teacher: Path, lines: list[str], tokens: int, workers: int) -> dict[str, Any]:
    """One size of the corpus: made, and started a second time."""
    corpus, out = folder / f"{tokens}.jsonl", folder / f"{tokens}-by-{workers}"
    if not corpus.exists():
        write_corpus(corpus, lines, tokens)
    command = ["tokenise", "--teacher", str(teacher), "--data", str(corpus), "--out", str(out)]
    command += ["--workers", str(workers)]
    first, again = measured(command), measured(command)
    assert again["shards"] == 0
    print(json.dumps({"first": first, "again": again}), file=sys.stderr)
    ranks = read_by_ranks(out)
    stored = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    journal = (out / "tokenise.sqlite").stat().st_size
    return {
        "tokens": first["tokens"],
        "documents": first["corpus"]["documents"],
        "workers": workers,
        "tokens/s a core": first["tokens"] / first["processor_s"],
        "without the start": first["tokens"] / (first["processor_s"] - again["processor_s"]),
        "`tokenizers` alone": library_speed(teacher, corpus),
        "peak, all processes": f"{first['peak'] / 2**20:,.0f} MiB",
        "peak, largest process": f"{first['largest'] / 2**20:,.0f} MiB",
        "stored bytes/token": stored / first["tokens"],
        "of them the journal's": journal / first["tokens"],
        "second start": f"{again['wall_s']:.1f} s ({again['processor_s']:.1f} s of processor time)",
        f"{RANKS} ranks read": f"{ranks['read'] / 2**20:,.0f} MiB, {ranks['tokens']:,} tokens",
        "of it from the disk": f"{ranks['from disk'] / 2**20:,.0f} MiB",
        "memory of a rank": f"{ranks['memory'] / 2**20:,.0f} MiB",
    }


def main() -> None:
    """Measure each size with each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[5_000_000, 20_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--teacher", type=Path, help="a model folder whose tokenizer is used")
    parser.add_argument("--json-out", type=Path)
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lines = lines_of_sources()
    with tempfile.TemporaryDirectory(prefix="arwkv-tokenise-") as scratch:
        folder = Path(scratch)
        teacher = asked.teacher or trained_teacher(folder / "teacher", lines)
        rows = [row(folder, teacher, lines, tokens, workers) for tokens in asked.tokens for workers in asked.workers]
    print_table("producer tokenise", rows)
    write_json(asked.json_out, {"tokenise": rows})


if __name__ == "__main__":
    main()
