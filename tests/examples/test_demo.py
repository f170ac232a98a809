"""The demo at a tiny size: every command, every file it promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUMMARY = {
    "teacher_perplexity", "student_perplexity", "perplexity_ratio", "kl_untrained", "kl_align", "kl_distill",
    "align_loss_first", "align_loss_last", "top1_agreement", "tokens", "bytes_per_token_logits",
    "bytes_per_token_hidden", "producer_tokens_per_s", "student_tokens_per_s", "seconds",
    "teacher_bigram_perplexity", "machine",
}  # fmt: skip


def make_teacher(out: Path, steps: int) -> Path:
    words = ["--steps", str(steps), "--hidden-size", "64", "--layers", "1", "--vocab-size", "400", "--context", "64"]
    subprocess.run([sys.executable, "examples/teacher.py", "--out", str(out), *words], cwd=ROOT, check=True)
    return out


def demo(teacher: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "examples/demo.py", "--teacher", str(teacher), "--out", str(out), "--json",
            "--train-tokens", "12000", "--heldout-tokens", "3000", "--max-length", "64", *words,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_demo(teacher: Path, out: Path) -> dict[str, Any]:
    done = demo(teacher, out, "--preset", "arwkv")
    assert done.returncode == 0, done.stderr
    assert " minutes on " in done.stderr.splitlines()[1]  # the estimate comes first
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_stops_at_a_teacher_that_is_no_better_than_its_bigram(tmp_path: Path) -> None:
    done = demo(make_teacher(tmp_path / "teacher", steps=1), tmp_path)
    assert done.returncode == 1
    assert "no lower than" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "shards" / "train").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_runs_from_teacher_to_report_and_repeats_nothing(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher", steps=800)
    summary = run_demo(teacher, tmp_path)
    assert set(summary) == SUMMARY
    assert summary["teacher_perplexity"] < summary["teacher_bigram_perplexity"]
    assert set(summary["machine"]) == {"cores", "isa", "accelerator", "dtype"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["align_loss_last"] < summary["align_loss_first"]
    assert summary["kl_distill"] < summary["kl_untrained"]

    report = (tmp_path / "report.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in report
    assert "http://" not in report
    assert "https://" not in report

    weights = tmp_path / "student-arwkv" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run_demo(teacher, tmp_path)
    assert weights.stat().st_mtime_ns == written
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
