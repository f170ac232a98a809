"""Finds datasets: under a root, and by what the index stores of their place."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from arwkv_api.roots.folders import local_folders
from arwkv_api.roots.local import LocalPlace
from arwkv_api.roots.place import Place, is_remote


@lru_cache(maxsize=4096)
def place_of(folder: str) -> Place:
    """The place that the index knows as `folder`."""
    if is_remote(folder):
        from arwkv_api.roots.objects import object_place  # loads fsspec

        return object_place(folder)
    return LocalPlace(Path(folder))


def dataset_folders(root: str, meanwhile: Callable[[], None] = lambda: None) -> Iterator[tuple[str, Place]]:
    """Name and place of each dataset: `root` itself, or the folders in it that hold a dataset.json.

    Raises OSError or TryAgain where the root cannot be listed.
    """
    if is_remote(root):
        from arwkv_api.roots.objects import places_under

        yield from places_under(root, meanwhile)
    elif Path(root).is_dir():
        for name, folder in local_folders(Path(root)):
            yield name, LocalPlace(folder)
