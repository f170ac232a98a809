"""Print the tables of families that are tested: `python tools/families.py`, in Markdown.

Teachers are compared with transformers by tests/producer/test_families.py, bases by tests/student/test_bases.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "store", "producer", "student")]


def teachers() -> list[tuple[str, ...]]:
    """Family, form of its blocks, what is captured, and where it is compared."""
    from arwkv_producer.teacher.families import FAMILIES

    rows: list[tuple[str, ...]] = [
        ("teacher", "block", "captured", "compared in vLLM", "and with `--capture-backend transformers`")
    ]
    for name, family in FAMILIES.items():
        inside = ["attention"] if family.form is not None else []
        inside += ["boundaries"] if inside and family.boundaries else []
        captured = ", ".join(["logits", "final", *inside])
        rows.append(
            (
                name,
                family.form or "unknown",
                captured,
                (family.not_in_vllm and f"no: {family.not_in_vllm}") or "yes",
                "yes",
            )
        )
    return rows


def bases() -> list[tuple[str, ...]]:
    """Family, form of its blocks, and what its attention has."""
    from arwkv_student.model.architectures import ARCHITECTURES

    rows: list[tuple[str, ...]] = [("base", "block", "q/k norms", "experts")]
    for name, architecture in ARCHITECTURES.items():
        experts = "yes" if architecture.experts is not None else "no"
        rows.append((name, architecture.norms.form, architecture.qk_norm or "none", experts))
    return rows


def main() -> None:
    """Print both tables."""
    for rows in (teachers(), bases()):
        print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        for row in rows[1:]:
            print(f"| {' | '.join(row)} |")
        print()


if __name__ == "__main__":
    main()
