"""Shards: the list, one of them, its statistics and manifest, and its data."""

from base64 import b64encode
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from arwkv_api.access.auth import Read, Write
from arwkv_api.http.models import Shard, ShardPage, ShardStateName, shard_page, shard_summary
from arwkv_api.http.parameters import LARGEST_ID, Cursor, DatasetName, IfMatch, Limit, Part, ShardSort, Unconditional
from arwkv_api.http.problems import answers
from arwkv_api.http.ranges import matches, requested_ranges, require_match
from arwkv_api.http.service import Service, ServiceDep
from arwkv_api.http.transfer import FileResponse
from arwkv_api.index import query as catalogue
from arwkv_api.index.orm import DatasetRow, ManifestRow
from arwkv_api.index.query import ShardFilter, dataset_figures, find_dataset, find_shard, manifests_of
from arwkv_api.index.scrub import verify_shard
from arwkv_api.roots.finding import place_of
from arwkv_api.roots.manifests import ShardState, data_file, open_data, parse_manifest
from arwkv_store.errors import CorruptShard, NotFound
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.statistics import ShardStats

router = APIRouter(prefix="/v1/datasets/{name}/shards", tags=["shards"])
ARROW_FILE = "application/vnd.apache.arrow.file"
DOWNLOADS: dict[int | str, dict[str, Any]] = {
    **answers(404, 409, 412, 416),
    200: {"description": "the whole file", "content": {ARROW_FILE: {}}},
    206: {"description": "the ranges asked for", "content": {ARROW_FILE: {}, "multipart/byteranges": {}}},
    304: {"description": "the caller's copy is this one"},
    307: {"description": "fetch it from the object store, at the signed address in `Location`"},
}
Count = Annotated[int | None, Query(ge=0, le=LARGEST_ID)]


@router.get("", dependencies=[Read], responses=answers(404), response_model=ShardPage)
def list_shards(
    service: ServiceDep,
    name: DatasetName,
    limit: Limit = 100,
    cursor: Cursor = None,
    include: Annotated[Literal["manifest"] | None, Query(description="add each shard's raw manifest")] = None,
    sort: Annotated[ShardSort, Query(description="key to sort by; `-` in front reverses")] = "part",
    state: Annotated[ShardStateName | None, Query(description="only shards in this state")] = None,
    min_tokens: Count = None,
    max_tokens: Count = None,
    sample_id: Annotated[int | None, Query(ge=0, le=LARGEST_ID, description="only the shard with this sample")] = None,
) -> Response:
    """The dataset's shards. With `include=manifest`, shards without a manifest are left out."""
    wanted = ShardFilter(state, min_tokens, max_tokens, sample_id, with_manifest=include == "manifest")
    with service.turn(), Session(service.engine) as session:
        figures = DatasetRow.id, DatasetRow.revision, DatasetRow.shards
        dataset_id, revision, committed = dataset_figures(session, service.settings.roots, name, *figures)

        def page() -> bytes:
            rows, following = catalogue.list_shards(session, dataset_id, wanted, sort, cursor, limit)
            raw = manifests_of(session, rows) if wanted.with_manifest else {}
            return shard_page(rows, raw, following, committed)

        body = service.answers.of((dataset_id, revision, wanted, sort, cursor, limit), page)
    return Response(body, media_type="application/json")


@router.get("/{part}", dependencies=[Read], responses=answers(404))
def get_shard(service: ServiceDep, name: DatasetName, part: Part) -> Shard:
    """One shard."""
    with Session(service.engine) as session:
        return shard_summary(find_shard(session, find_dataset(session, service.settings.roots, name), part))


@router.get("/{part}/stats", dependencies=[Read], responses=answers(404, 409))
def shard_stats(service: ServiceDep, name: DatasetName, part: Part) -> ShardStats:
    """One shard's statistics, from its manifest."""
    with Session(service.engine) as session:
        return _committed(service, session, name, part)[1].stats


@router.get("/{part}/manifest", dependencies=[Read], responses=answers(404, 409), response_class=Response)
def shard_manifest(service: ServiceDep, name: DatasetName, part: Part) -> Response:
    """The raw bytes of the shard's manifest."""
    with Session(service.engine) as session:
        shard = find_shard(session, find_dataset(session, service.settings.roots, name), part)
        raw = session.get_one(ManifestRow, shard.id).raw
        if shard.state == ShardState.MISSING or not raw:
            raise NotFound(f"dataset {name!r}: part {part}: {shard.problem}; make the part again")
        return Response(raw, media_type="application/json")


@router.post("/{part}/verify", dependencies=[Write, Unconditional], responses=answers(404, 409, 412))
def verify(service: ServiceDep, name: DatasetName, part: Part) -> Shard:
    """Verify the shard's files now, regardless of earlier results, and return the shard."""
    with Session(service.engine) as session:
        dataset = find_dataset(session, service.settings.roots, name)
        find_shard(session, dataset, part)
    verify_shard(service.engine, dataset, part)
    with Session(service.engine) as session:
        return shard_summary(find_shard(session, dataset, part))


@router.head("/{part}/data", dependencies=[Read], responses=DOWNLOADS, response_class=Response)
@router.get("/{part}/data", dependencies=[Read], responses=DOWNLOADS, response_class=Response)
def download(
    service: ServiceDep,
    request: Request,
    name: DatasetName,
    part: Part,
    file: Annotated[Literal["rows", "hidden"], Query(description="which of the part's files")] = "rows",
    direct: Annotated[bool, Query(description="false: through this service, even if the store could send it")] = True,
    range_: Annotated[str | None, Header(alias="Range", examples=["bytes=0-65535"])] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_match: IfMatch = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A shard's Arrow file, whole or in ranges; its ETag is the file's SHA-256.

    A file in an object store that signs addresses is fetched from there: the answer to GET is a redirect.
    """
    with Session(service.engine) as session:
        dataset, manifest = _committed(service, session, name, part)
        place = place_of(dataset.folder)
    info = data_file(manifest, file)
    etag = f'"{info.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Content-Disposition": f'attachment; filename="{info.name}"',
        "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(info.sha256)).decode()}:",
    }
    require_match(if_match, etag)
    if if_none_match is not None and matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    wanted = range_ if request.method == "GET" else None
    ranges = requested_ranges(wanted, if_range, etag, info.size_bytes, service.settings.range_limit)
    # The store knows neither our ETag nor answers of several ranges.
    may_redirect = direct and service.settings.redirects and request.method == "GET" and if_range is None
    if may_redirect and len(ranges or ()) <= 1 and (address := place.signed_address(info.name)) is not None:
        return RedirectResponse(address, 307, {"Cache-Control": "no-store"})
    content, _ = open_data(place, manifest, file)
    return FileResponse(content, ranges, ARROW_FILE, headers)


def _committed(service: Service, session: Session, name: str, part: int) -> tuple[DatasetRow, ShardManifest]:
    """The dataset and the part's manifest. Raises NotFound, or CorruptShard if the part is known to be bad."""
    dataset = find_dataset(session, service.settings.roots, name)
    shard = find_shard(session, dataset, part)
    if shard.state == ShardState.MISSING:
        raise NotFound(f"dataset {name!r}: part {part}: {shard.problem}; make the part again")
    if shard.state == ShardState.CORRUPT:
        raise CorruptShard(f"dataset {name!r}: part {part}: {shard.problem}")
    return dataset, parse_manifest(session.get_one(ManifestRow, shard.id).raw)
