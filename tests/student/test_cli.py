import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arwkv_store.errors import UsageError
from arwkv_student import cli
from arwkv_student.settings import EvalSettings, GenerateSettings, TrainSettings
from student_faults import swap_two_tokens


def student(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([word if isinstance(word, str) else str(word) for word in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = student(
            *("train", "--shards", str(tiny_shards), "--base", str(tiny_teacher), "--out", str(out)),
            *("--head-dim", "16", "--steps", "2", "--batch-size", "4", "--workers", "0", "--json"),
        )
    assert code == 0
    assert set(json.loads(stdout.getvalue())["stages"]) == {"align", "distill"}
    return out


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; sys.argv = ['student', '--help']\n"
        "from arwkv_student.cli import main\n"
        "try: main()\n"
        "except SystemExit: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_eval_compares_trained_and_untrained(run: Path, tiny_shards: Path, tiny_teacher: Path) -> None:
    trained = cli.evaluate(EvalSettings(model=str(run), shards=str(tiny_shards), json=True))
    untrained = cli.evaluate(
        EvalSettings(base=str(tiny_teacher), head_dim=16, shards=str(tiny_shards), samples=8, json=True)
    )
    for result in (trained, untrained):
        assert result["kl"] > 0
        assert result["perplexity_ratio"] == pytest.approx(result["student_perplexity"] / result["teacher_perplexity"])
        assert 0 <= result["top1_agreement"] <= 1
    assert untrained["tokens"] < trained["tokens"]


def test_shards_of_another_tokenizer_are_refused(
    run: Path, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The tokenizer beside the student decides, whatever its base is called."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    swap_two_tokens(other)
    with pytest.raises(UsageError, match=r"tokenizer of model .*/other \(.* is not the shards'"):
        cli.evaluate(EvalSettings(model=str(other), shards=str(tiny_shards), json=True))
    train = TrainSettings(shards=(str(tiny_shards),), base=str(tiny_teacher), start_from=str(other), stage="distill")
    with pytest.raises(UsageError, match=r"tokenizer of --start-from .*/other \(.* is not the shards'"):
        cli.train(replace(train, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_generate_continues_the_prompt(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = cli.generate(GenerateSettings(model=str(run), prompt="import os", max_new_tokens=5))
    assert result["tokens"] <= 5
    assert result["text"].strip() in capfd.readouterr().out
    sampled = [
        cli.generate(GenerateSettings(model=str(run), prompt="", max_new_tokens=5, temperature=1.0, seed=7, json=True))
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--shards", "nowhere"], "give either --model"),
        (["eval", "--shards", "nowhere", "--tasks", "mmlu"], "run one evaluation at a time"),
        (["train", "--stage", "sft", "--data", "x.jsonl"], "--start-from is missing"),
        (["eval", "--model", "nowhere", "--shards", "{shards}"], "model nowhere: no config.json there"),
        (["export", "--model", "{teacher}", "--out", "x"], "model type 'qwen2', not 'arwkv'"),
        (["generate", "--model", "{teacher}", "--prompt", "x", "--state", "y"], "keeps its attention"),
        (
            ["generate", "--model", "{student}", "--prompt", "caf\udce9"],
            r"--prompt: '\udce9' at character 3 is no",
        ),
        (["train", "--shards", "{shards}", "--base", "no/where"], "no such folder"),
        (["train", "--shards", "{shards}", "--base", "{teacher}", "--head-dim", "48"], "heads of 48 do not divide"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(
    arguments: list[str],
    message: str,
    tiny_shards: Path,
    tiny_teacher: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = student(*(word.format(shards=tiny_shards, teacher=tiny_teacher, student=run) for word in arguments))
    stderr = capfd.readouterr().err
    assert code == 2
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
