"""A dataset of very many committed parts, made in a moment: their data files are one file under many names."""

import os
from pathlib import Path

from arwkv_store import ShardManifest
from arwkv_store.format.layout import data_file_name, manifest_name
from store_examples import example_dataset_info, write_example_dataset

SAMPLES_PER_PART = 4


def many_shards(folder: Path, shards: int) -> Path:
    """Write the dataset. Its manifests are true of names, sizes and statistics; its sample ids are only part 0's."""
    info = example_dataset_info(samples=SAMPLES_PER_PART * shards, samples_per_part=SAMPLES_PER_PART, layers=())
    write_example_dataset(folder, info=info, parts=[0])
    place = folder / "shards"
    first = ShardManifest.from_bytes((place / manifest_name(0)).read_bytes(), "part 0")
    for part in range(1, shards):
        name = data_file_name(part, "rows")
        os.link(place / data_file_name(0, "rows"), place / name)
        changes = {
            "part": part,
            "files": {"rows": first.files["rows"].model_copy(update={"name": name})},
            "first_sample_id": SAMPLES_PER_PART * part,
            "last_sample_id": SAMPLES_PER_PART * (part + 1) - 1,
        }
        (place / manifest_name(part)).write_bytes(first.model_copy(update=changes).to_bytes())
    return folder
