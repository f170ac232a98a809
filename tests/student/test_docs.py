"""docs/recipe.md mentions every flag of `student train`."""

import dataclasses
import re
from pathlib import Path

from arwkv_student.settings import TrainSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_every_flag_is_documented() -> None:
    mentioned = set(re.findall(r"--[a-z][a-z-]*", DOCUMENT.read_text()))
    flags = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(TrainSettings)}
    assert flags - mentioned == set()
