"""The `producer` command."""

import sys
from collections.abc import Sequence
from typing import Any

from arwkv_producer.config import DoctorConfig, GenerateConfig, PlanConfig, TokeniseConfig, VerifyConfig
from arwkv_producer.write_config import WriteConfig
from arwkv_store.commands import command_line


def main() -> None:
    """Entry point of the console script."""
    commands: dict[str, command_line.Command] = {
        "generate": generate,
        "plan": plan,
        "tokenise": tokenise,
        "write": write,
        "verify": verify,
        "doctor": doctor,
    }
    description = "Run a teacher once and store its output for every token."
    command_line.main("producer", description, commands, gathered(sys.argv[1:], "--data"))


def gathered(words: Sequence[str], flag: str) -> list[str]:
    """Join `FLAG a … FLAG b` into one `FLAG a b`, because the parser keeps only the last occurrence."""
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
    """Run the teacher over a corpus and write shards. After a stop, the same command continues."""
    if config.dry_run:
        from arwkv_producer.run.plan import plan_of_text

        return _print_plans(config, plan_of_text(config))
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
    """Print what a capture costs in bytes, shards and time."""
    from arwkv_producer.run.plan import plan

    return _print_plans(config, plan(config))


def _print_plans(config: GenerateConfig, document: dict[str, Any]) -> dict[str, Any]:
    """Print a plan, or one for each dataset, unless `--json` is set."""
    from arwkv_producer.run.plan import print_plan

    if not config.json:
        for plan_of_one in document.values() if config.data else [document]:
            print_plan(plan_of_one)
    return document


def tokenise(config: TokeniseConfig) -> dict[str, Any]:
    """Tokenize text into a dataset of tokens. The same command continues, and adds appended documents."""
    from arwkv_producer.run.tokenise import tokenise

    summary = tokenise(config)
    if not config.json:
        print(
            f"{summary['shards']:,} shards, {summary['samples']:,} samples, {summary['tokens']:,} tokens at "
            f"{summary['tokens_per_s']:,.0f} tokens/s added to {summary['dataset']}",
            file=sys.stderr,
        )
    return summary


def write(config: WriteConfig) -> dict[str, Any]:
    """Let the teacher answer prompts. After a stop, the same command continues."""
    from arwkv_producer.writing.write import write

    summary = write(config)
    if not config.json:
        print(f"{summary['answers']:,} answers, {summary['ended']:,} of them ended by themselves, in {summary['out']}")
    return summary


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Score stored samples again with transformers, and report what differs."""
    from arwkv_producer.check.verify import verify

    document = verify(config)
    if not config.json:
        print(f"{document['samples']} samples fit; largest differences:")
        for name, difference in document["largest_differences"].items():
            print(f"  {name:<14} {difference:.2g}")
    return document


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Say what will happen with a teacher, or which families of teachers were compared with transformers."""
    from arwkv_producer.check.doctor import doctor

    document = doctor(config)
    if not config.json and config.teacher:
        for name, value in document.items():
            print(f"{name:<14} {value}")
    elif not config.json:
        rows = [list(document["families"][0]), *(list(row.values()) for row in document["families"])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    return document
