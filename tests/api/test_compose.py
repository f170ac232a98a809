"""docker-compose.yml and the images: well formed, closed by default, and in step with the commands they call."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api_serving import serving
from arwkv_api.config import ServeConfig
from arwkv_store import open_dataset

HOME = Path(__file__).parents[2]
DOCKERFILES = [HOME / "Dockerfile", HOME / "api" / "Dockerfile"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, parsed."""
    document: dict[str, Any] = yaml.safe_load((HOME / "docker-compose.yml").read_text())
    return document


def test_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    folder = files("check_jsonschema") / "builtin_schemas" / "vendor"
    jsonschema.validate(compose, json.loads((folder / "compose-spec.json").read_text()))


def test_default_is_the_service_and_its_database(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {"database": None, "sample": None, "api": None, "teacher": ["teacher"], "train": ["train"]}


def test_service_cannot_write_shards_and_is_reachable_from_this_machine_alone(compose: dict[str, Any]) -> None:
    api = compose["services"]["api"]
    assert set(api["volumes"]) == {"shards:/shards:ro", "runs:/runs:ro"}
    assert api["read_only"] is True
    assert api["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in api["ports"])
    assert api["healthcheck"]["test"][0] == "CMD"


def test_sample_is_seen_without_a_key_and_writing_takes_one(compose: dict[str, Any]) -> None:
    assert "--public-read" in compose["services"]["api"]["command"]
    assert compose["services"]["api"]["environment"]["ARWKV_API_KEY"]


def test_service_is_called_with_flags_that_it_has(compose: dict[str, Any]) -> None:
    command, *flags = compose["services"]["api"]["command"]
    assert command == "serve"
    known = {name.replace("_", "-") for name in ServeConfig.__dataclass_fields__}
    assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= known


def test_gpu_services_reserve_a_gpu(compose: dict[str, Any]) -> None:
    for name in ("teacher", "train"):
        (device,) = compose["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_gpu_images_are_built_with_what_their_command_needs(compose: dict[str, Any]) -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    for name, extra, command in (("teacher", "gpu", "producer"), ("train", "train", "student")):
        service = compose["services"][name]
        assert (service["build"]["args"], service["entrypoint"]) == ({"EXTRA": extra}, [command])
        assert extra in project["optional-dependencies"]
        assert command in project["scripts"]


def test_every_image_is_pinned_and_every_built_one_has_its_dockerfile(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert re.search(r":\d+\.\d+", service["image"]), service["image"]
        if "build" in service:
            assert HOME / service["build"]["dockerfile"] in DOCKERFILES


@pytest.mark.parametrize("path", DOCKERFILES, ids=["gpu", "api"])
def test_image_is_pinned_runs_as_a_user_and_copies_what_exists(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^FROM \S+:\d+\.\d+\.\d+-\S+", text, re.M)
    assert len(re.findall(r"^FROM ", text, re.M)) == len(re.findall(r"^FROM \S+:\d+\.\d+\.\d+-", text, re.M))
    assert re.search(r"^USER 10001$", text, re.M)
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M):
        *sources, _ = line.split()
        assert all((HOME / source).exists() for source in sources), line


def test_sample_dataset_is_complete_and_readable_as_text(tmp_path: Path) -> None:
    command = [sys.executable, str(HOME / "api" / "sample_dataset.py"), str(tmp_path / "root" / "sample")]
    for _ in range(2):  # the second finds it complete
        subprocess.run(command, check=True, timeout=120)
    dataset = open_dataset(tmp_path / "root" / "sample")
    assert len(dataset) == dataset.info.corpus.samples > 100
    with serving("--root", str(tmp_path / "root"), cache=tmp_path) as (url, _):
        import httpx

        preview = httpx.get(f"{url}/v1/datasets/sample/samples/0?top=3").json()
    text = "".join(token["text"] for token in preview["tokens"])
    assert text.startswith('"""')
    assert all(token["alternatives"] for token in preview["tokens"][1:])
