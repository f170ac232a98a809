"""docs/producer.md mentions every flag that exists."""

import dataclasses
from pathlib import Path

import pytest

from arwkv_producer.config import GenerateConfig, PlanConfig, VerifyConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "producer.md"


@pytest.mark.parametrize("config", [GenerateConfig, PlanConfig, VerifyConfig])
def test_every_flag_is_documented(config: type) -> None:
    text = DOCUMENT.read_text()
    flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(config)]
    assert [flag for flag in flags if f"`{flag}`" not in text] == []
