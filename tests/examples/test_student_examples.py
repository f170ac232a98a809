"""A recipe of your own gives a student that the other example uses."""

from pathlib import Path

from examples_run import run_example


def test_own_preset_makes_a_student_that_python_uses(tiny_teacher: Path, tmp_path: Path) -> None:
    made = run_example("own_preset.py", "--base", str(tiny_teacher), "--out", str(tmp_path))
    assert [kind == made["layers"][-1] for kind in made["layers"]] == [False, True]
    assert made["time_mix_parameters"] > 0
    texts = run_example("use_student.py", "--model", str(tmp_path), "--tokens", "4")["texts"]
    assert [text[:6] for text in texts] == [texts[0][:6], "import", "class "]
    assert texts[0].startswith("def ")
