"""People's notes and tags on datasets and runs: read from the file beside the data, and changed there."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from arwkv_api.access.auth import Read, ReadAll, Write, WriteAll, require_key
from arwkv_api.errors import PreconditionRequired
from arwkv_api.http.parameters import DatasetName, IfMatch, RunName
from arwkv_api.http.problems import answers
from arwkv_api.http.ranges import require_match
from arwkv_api.http.service import Service, ServiceDep
from arwkv_api.index.indexing import store_notes
from arwkv_api.index.lease import lease
from arwkv_api.index.query import find_dataset
from arwkv_api.roots.finding import place_of
from arwkv_store.dataset.notes_file import LocalNotes, NotesFile
from arwkv_store.format.layout import NOTES_FILE
from arwkv_store.format.notes import MAX_TAGS, Notes, Tag, Text, version_of

router = APIRouter(prefix="/v1", tags=["notes"])
# How long a change waits to be indexed at once; otherwise the next scan does it.
INDEX_WAIT_S = 1.0


class Words(BaseModel):
    """The whole of the notes, in place of what is there."""

    model_config = ConfigDict(extra="forbid")
    text: Text = Field(examples=["Held-out part of the third round; entropy looks right."])
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS, examples=[["baseline", "round-3"]])]


@router.get("/datasets/{name}/notes", dependencies=[Read], responses=answers(404, 409))
def get_dataset_notes(service: ServiceDep, response: Response, name: DatasetName) -> Notes:
    """People's notes and tags on a dataset; empty if there are none. Its `ETag` is for changing them."""
    return _read(_of_dataset(service, name)[0], response)


@router.put("/datasets/{name}/notes", dependencies=[Write], responses=answers(404, 409, 412, 428))
def put_dataset_notes(
    service: ServiceDep, request: Request, response: Response, name: DatasetName, words: Words, if_match: IfMatch = None
) -> Notes:
    """Replace them, if they are still those of `If-Match`: otherwise 412, and nothing is lost. Only with a key."""
    require_key(request, "notes are written")
    file, root, dataset_id = _of_dataset(service, name)
    notes = _replace(file, words, if_match, response)
    with lease(service.engine, root, INDEX_WAIT_S) as held:
        if held is not None:
            with Session(service.engine) as session, session.begin():
                held.renew(session)
                store_notes(session, dataset_id, notes.to_bytes())
    return notes


@router.get("/runs/{name}/notes", dependencies=[ReadAll], responses=answers(404, 409))
def get_run_notes(service: ServiceDep, response: Response, name: RunName) -> Notes:
    """People's notes and tags on a run; empty if there are none. Its `ETag` is for changing them."""
    return _read(LocalNotes(service.runs.find(name)), response)


@router.put("/runs/{name}/notes", dependencies=[WriteAll], responses=answers(404, 409, 412, 428))
def put_run_notes(
    service: ServiceDep, request: Request, response: Response, name: RunName, words: Words, if_match: IfMatch = None
) -> Notes:
    """Replace them, if they are still those of `If-Match`: otherwise 412, and nothing is lost. Only with a key."""
    require_key(request, "notes are written")
    return _replace(LocalNotes(service.runs.find(name)), words, if_match, response)


def _of_dataset(service: Service, name: str) -> tuple[NotesFile, str, int]:
    """The dataset's notes, its root and the id of its row."""
    with Session(service.engine) as session:
        row = find_dataset(session, service.settings.roots, name)
        return place_of(row.folder).notes(), row.root, row.id


def _read(file: NotesFile, response: Response) -> Notes:
    raw = file.read()
    response.headers["ETag"] = _etag(raw)
    return Notes.from_bytes(raw, NOTES_FILE)


def _replace(file: NotesFile, words: Words, if_match: str | None, response: Response) -> Notes:
    if if_match is None:
        raise PreconditionRequired("If-Match: missing; give the ETag of the notes that you have read, or * for any")

    def change(raw: bytes) -> Notes:
        require_match(if_match, _etag(raw))
        Notes.from_bytes(raw, NOTES_FILE)  # those of a later release are not replaced
        return Notes.said_now(words.text, words.tags)

    notes = file.change(change)
    response.headers["ETag"] = _etag(notes.to_bytes())
    return notes


def _etag(raw: bytes) -> str:
    return f'"{version_of(raw)}"'
