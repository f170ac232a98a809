"""Writes a dataset into a repository on the Hub with few commits: one per part, or one for many parts of a copy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from arwkv_store.format.layout import SHARDS_FOLDER, manifest_name
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.places.object_target import ObjectTarget
from arwkv_store.places.retry import with_retries

MAX_REGULAR_BYTES = 10 << 20
"""Above this size, the Hub uploads a file before the commit."""


class HubTarget(ObjectTarget):
    """Commits name their parent, so the Hub refuses a commit if another writer was faster."""

    summarized = False
    """The Hub limits the number of commits."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._together: list[tuple[str, list[Any]]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Parts that are published inside are committed together at the end."""
        parts: list[tuple[str, list[Any]]] = []
        self._together = parts
        yield
        self._together = None
        if parts:
            self._commit(parts)

    def publish(self, manifest: ShardManifest, data: Mapping[str, IO[bytes]]) -> bool:
        """As in any store; inside `together`, only its end shows whose commit was first."""
        name, raw = f"{SHARDS_FOLDER}/{manifest_name(manifest.part)}", manifest.to_bytes()
        objects = {f"{SHARDS_FOLDER}/{manifest.files[kind].name}": Path(file.name) for kind, file in data.items()}
        part = (name, [*(self._addition(key, path) for key, path in objects.items()), self._addition(name, raw)])
        if self._together is None:
            self._commit([part])
            return self._folder.read(name) == raw
        self._folder.attempt(partial(self._upload, part[1]), name)
        self._together.append(part)
        return True

    def replace_beside(self, name: str, content: bytes) -> None:
        """A commit that puts the file there, or replaces it."""
        self._folder.attempt(partial(self._commit_anew, name, content), name)

    def _commit_anew(self, name: str, content: bytes) -> None:
        api, repository = self._repository()
        head = str(api.repo_info(**repository).sha)
        addition = self._addition(name, content)
        api.create_commit(operations=[addition], commit_message=f"Write {name}", parent_commit=head, **repository)

    def _create(self, name: str, content: bytes) -> None:
        self._folder.once(partial(self._commit_once, [(name, [self._addition(name, content)])]), name)

    def _commit(self, parts: list[tuple[str, list[Any]]]) -> None:
        once = partial(self._folder.once, partial(self._commit_once, parts), parts[0][0])
        with_retries(once, self.uri)

    def _commit_once(self, parts: list[tuple[str, list[Any]]]) -> None:
        """Commit the additions of each part whose own name (its manifest, or dataset.json) does not exist."""
        api, repository = self._repository()
        head = str(api.repo_info(**repository).sha)
        paths = [self._in_repository(name) for name, _ in parts]
        at_head = {**repository, "revision": head}
        there = {found.path for found in api.get_paths_info(paths=paths, **at_head)}
        additions = [
            addition for path, (_, some) in zip(paths, parts, strict=True) if path not in there for addition in some
        ]
        if additions:
            message = f"Add {len(additions)} files of a dataset"
            api.create_commit(operations=additions, commit_message=message, parent_commit=head, **repository)

    def _upload(self, additions: list[Any]) -> None:
        api, repository = self._repository()
        api.preupload_lfs_files(additions=additions, **repository)

    def _addition(self, name: str, content: bytes | Path) -> Any:
        from huggingface_hub import CommitOperationAdd

        if isinstance(content, Path) and content.stat().st_size <= MAX_REGULAR_BYTES:
            # The Hub may need it in the commit, when the temporary file is gone.
            content = content.read_bytes()
        return CommitOperationAdd(path_in_repo=self._in_repository(name), path_or_fileobj=content)

    def _repository(self) -> tuple[Any, dict[str, Any]]:
        from huggingface_hub import HfApi

        filesystem = self._folder.filesystem()
        place = filesystem.resolve_path(self._folder.path(""))
        repository = {"repo_id": place.repo_id, "repo_type": place.repo_type, "revision": place.revision}
        return HfApi(endpoint=filesystem.endpoint, token=filesystem.token), repository

    def _in_repository(self, name: str) -> str:
        return str(self._folder.filesystem().resolve_path(self._folder.path(name)).path_in_repo)
