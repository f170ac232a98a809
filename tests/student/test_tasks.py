import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from arwkv_store.errors import NotFound, UsageError
from arwkv_student import cli
from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.evaluation.tasks import SUITES, evaluate_tasks
from arwkv_student.model.loading import load_student
from arwkv_student.settings import EvalSettings

QUESTIONS = [
    {"question": "import", "choices": [" os", " class def", " return x"], "answer": 0},
    {"question": "def f(x):", "choices": [" pass", " import sys", " os"], "answer": 1},
    {"question": "for i in", "choices": [" range", " class", " return self"], "answer": 2},
    {"question": "class A(object): # a longer question", "choices": [" def", " os", " x"], "answer": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
{kind}
metadata: {{version: 1.0}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATION = """
output_type: generate_until
doc_to_target: expected
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose padding rows of the head (500 to 543) are louder than all tokens'."""
    folder = tmp_path_factory.mktemp("student") / "student"
    torch.manual_seed(0)
    base = open_base(str(tiny_teacher))
    model = convert(base, student_config(base, "rad-rwkv7")).model
    model.lm_head.weight.data[500:] *= 50
    model.save_pretrained(folder)
    copy_tokenizer(tiny_teacher, folder)
    return folder


@pytest.fixture
def folder(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Task files `choice`, and `say`, whose right answers are what the student says when asked one by one."""
    model, tokenizer = load_student(student).eval(), AutoTokenizer.from_pretrained(student)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = []
    for question in QUESTIONS:
        ids = torch.tensor([tokenizer(question["question"])["input_ids"]])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
            suppress_tokens=list(range(500, 544)),
        )
        text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        lines.append(json.dumps(question | {"expected": text.split("\n\n")[0]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    for name, kind in (("choice", CHOICE), ("say", GENERATION)):
        text = TASK.format(name=name, data=tmp_path / "data.jsonl", kind=kind)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def likeliest(student: Path, question: dict[str, object]) -> int:
    """The choice of the largest log-probability, computed one by one."""
    model, tokenizer = load_student(student).eval(), AutoTokenizer.from_pretrained(student)
    scores = []
    for choice in question["choices"]:  # type: ignore[attr-defined] # a list of texts
        asked = tokenizer(question["question"])["input_ids"]
        ids = torch.tensor([tokenizer(f"{question['question']}{choice}")["input_ids"]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        scores.append(logprobs[len(asked) - 1 :].sum().item())
    return max(range(len(scores)), key=scores.__getitem__)


def test_local_tasks_give_what_the_student_says_unbatched(
    student: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = EvalSettings(model=str(student), tasks="choice,say", task_folder=folder, batch_size=3, dtype="fp32")
    result = cli.evaluate(asked)
    assert result is not None
    right = [likeliest(student, question) == question["answer"] for question in QUESTIONS]
    assert result["tasks"]["choice"]["acc"] == pytest.approx(sum(right) / len(right))
    assert result["tasks"]["say"]["exact_match"] == 1.0
    assert result["max_length"] == 512
    assert "exact_match" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_share_the_questions(student: Path, folder: Path) -> None:
    asked = ["--model", str(student), "--tasks", "choice,say", "--task-folder", str(folder), "--dtype", "fp32"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "arwkv_student.cli", "eval", *asked, "--json"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    answers = [process.communicate()[0] for process in started]
    alone = evaluate_tasks(EvalSettings(model=str(student), tasks="choice,say", task_folder=folder, dtype="fp32"))
    assert json.loads(answers[0])["tasks"] == alone["tasks"]
    assert not answers[1]


def test_teacher_can_stand_beside_its_student(tiny_teacher: Path, folder: Path) -> None:
    asked = EvalSettings(model=str(tiny_teacher), tasks="choice", task_folder=folder, samples=2, max_length=64)
    result = evaluate_tasks(asked)
    assert 0 <= result["tasks"]["choice"]["acc"] <= 1
    assert result["max_length"] == 64


def test_suite_is_the_papers_table_at_its_context() -> None:
    suite = SUITES["arwkv-table1"]
    assert suite.max_length == 2048
    assert [*suite.tasks] == ["MMLU", "SQuAD", "GPQA (Diamond)", "WinoGrande", "GSM8K", "IFEval", "ARC-c"]


@pytest.mark.slow
def test_every_task_of_every_suite_is_known_to_lm_eval() -> None:
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    for suite in SUITES.values():
        assert set(suite.tasks.values()) <= known


def test_what_cannot_be_run_is_named(
    student: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = EvalSettings(model=str(student), tasks="choice", task_folder=folder)
    with pytest.raises(NotFound, match="--task-folder"):
        evaluate_tasks(EvalSettings(model=str(student), tasks="choice", task_folder=tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="name a folder with model and tokenizer"):
        evaluate_tasks(EvalSettings(model=str(tmp_path), tasks="choice", task_folder=folder))
    (folder / "data.jsonl").unlink()
    with pytest.raises(NotFound, match="fetch the tasks' data"):
        evaluate_tasks(asked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'arwkv\[train\]'"):
        evaluate_tasks(asked)


def test_unknown_task_is_refused_by_name(student: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    class OnlyLocal(lm_eval.tasks.TaskManager):  # type: ignore[misc] # lm-eval is untyped
        """Without lm-eval's own tasks, which take half a minute to list."""

        def __init__(self, include_path: str, include_defaults: bool = False) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", OnlyLocal)
    with pytest.raises(UsageError, match="--tasks nonsense: lm-eval does not know it"):
        evaluate_tasks(EvalSettings(model=str(student), tasks="choice, nonsense", task_folder=folder))
