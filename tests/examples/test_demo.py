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
}  # fmt: skip


def run_demo(teacher: Path, out: Path) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable, "examples/demo.py", "--teacher", str(teacher), "--out", str(out), "--json",
            "--train-characters", "30000", "--heldout-characters", "8000", "--max-length", "64",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_runs_from_teacher_to_report_and_repeats_nothing(tiny_teacher: Path, tmp_path: Path) -> None:
    summary = run_demo(tiny_teacher, tmp_path)
    assert set(summary) == SUMMARY
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["align_loss_last"] < summary["align_loss_first"]
    assert summary["kl_distill"] < summary["kl_untrained"]

    report = (tmp_path / "report.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in report
    assert "http://" not in report
    assert "https://" not in report

    weights = tmp_path / "student-arwkv" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run_demo(tiny_teacher, tmp_path)
    assert weights.stat().st_mtime_ns == written
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
