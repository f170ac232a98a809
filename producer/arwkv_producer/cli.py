"""The `producer` command."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from arwkv_producer.config import GenerateConfig, PlanConfig, VerifyConfig
from arwkv_store.commands import command_line


def main() -> None:
    """Entry point of the console script."""
    commands: dict[str, command_line.Command] = {"generate": generate, "plan": plan, "verify": verify}
    description = "Run a teacher once and keep what it said of every token."
    command_line.main("producer", description, commands, gathered(sys.argv[1:], "--data"))


def gathered(words: Sequence[str], flag: str) -> list[str]:
    """The words with `FLAG a … FLAG b` as one `FLAG a b`: the parser would keep the last one only."""
    others: list[str] = []
    values: list[str] = []
    inside = False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = name == flag
            if inside:
                values += [value] if equals else []
                continue
        (values if inside else others).append(word)
    return [*others, flag, *values] if values else others


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Run the teacher over a corpus and write shards; the same command continues where it stopped."""
    if config.dry_run:
        return _dry_run(config)
    from arwkv_producer.run.generate import generate

    summary = generate(config)
    if not config.json:
        print(
            f"{summary['shards']:,} shards, {summary['samples']:,} samples, {summary['tokens']:,} tokens at "
            f"{summary['tokens_per_s']:,.0f} tokens/s, {summary['size_bytes'] / 1e6:,.1f} MB in {summary['dataset']}",
            file=sys.stderr,
        )
    return summary


def plan(config: PlanConfig) -> dict[str, Any]:
    """Say what a capture would cost in bytes, shards and time, from the teacher's config.json alone."""
    from arwkv_producer.run.plan import plan, print_plan

    document = plan(config)
    if not config.json:
        print_plan(document)
    return document


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Score stored samples again with transformers, and say what does not fit."""
    from arwkv_producer.check.verify import verify

    document = verify(config)
    if not config.json:
        print(f"{document['samples']} samples fit; largest differences:")
        for name, difference in document["largest_differences"].items():
            print(f"  {name:<14} {difference:.2g}")
    return document


def _dry_run(config: GenerateConfig) -> dict[str, Any]:
    from arwkv_producer.run.job import prepare, report_corpus
    from arwkv_producer.run.output_folder import missing_room
    from arwkv_producer.run.plan import costs, print_plan

    documents = {}
    tokens = 0
    for job in prepare(config):
        report_corpus(job)
        documents[job.out] = costs(config, job.teacher, len(job.corpus.tokens), len(job.corpus), config.tokens_per_s)
        documents[job.out]["corpus"] = asdict(job.corpus.report)
        if not config.json:
            print_plan(documents[job.out])
        tokens += len(job.corpus.tokens)
    if (problem := missing_room(config, job.teacher, tokens)) is not None:
        print(f"{problem}; it would not start without --fill-disk", file=sys.stderr)
    return documents
