"""Datasets: the list, one of them, its identity and statistics; registering and withdrawing."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from arwkv_api.access.auth import Read, Write, admitted, is_admitted, require_admitted, require_key
from arwkv_api.errors import PreconditionFailed
from arwkv_api.http.models import (
    Corpus,
    Dataset,
    DatasetPage,
    DatasetState,
    Extensions,
    Lineage,
    Registration,
    RemovalPlan,
    Timeline,
    dataset_detail,
    dataset_summary,
)
from arwkv_api.http.parameters import (
    WITHOUT_NUL,
    Cursor,
    DatasetName,
    DatasetSort,
    Limit,
    Search,
    TagFilter,
    Unconditional,
)
from arwkv_api.http.problems import answers
from arwkv_api.http.service import Service, ServiceDep
from arwkv_api.index import query as catalogue
from arwkv_api.index.indexing import forget, forget_shards
from arwkv_api.index.lease import Lease, Renewal, lease
from arwkv_api.index.orm import DatasetRow
from arwkv_api.index.query import DatasetFilter, dataset_figures, find_dataset
from arwkv_api.index.scan import scan_root
from arwkv_api.index.timeline import timeline_of
from arwkv_api.roots.finding import place_of
from arwkv_api.roots.manifests import read_corpus_report
from arwkv_api.views.extensions import extensions
from arwkv_api.views.lineage import datasets_of, hash_of, runs_on
from arwkv_store.dataset.garbage import require_no_capture
from arwkv_store.dataset.remove import plan_removal, remove
from arwkv_store.errors import NotFound, TryAgain
from arwkv_store.format.schema import DatasetInfo
from arwkv_store.format.statistics import DatasetStats

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
# How long a request waits for a running scan before it answers "try again".
SCAN_WAIT_S = 10.0


@router.get("", dependencies=[Read], responses=answers())
def list_datasets(
    service: ServiceDep,
    request: Request,
    limit: Limit = 100,
    cursor: Cursor = None,
    sort: Annotated[DatasetSort, Query(description="key to sort by; `-` in front reverses")] = "name",
    contains: Annotated[
        str | None, Query(max_length=255, pattern=WITHOUT_NUL, description="part of the name, any case")
    ] = None,
    search: Search = None,
    tag: TagFilter = None,
    teacher: Annotated[
        str | None, Query(max_length=255, pattern=WITHOUT_NUL, description="the teacher's exact name")
    ] = None,
    state: Annotated[DatasetState | None, Query(description="only datasets in this state")] = None,
) -> DatasetPage:
    """Datasets under the roots, without withdrawn ones."""
    with Session(service.engine) as session:
        wanted = DatasetFilter(contains, search, tag, teacher, state, admitted(request))
        rows, following = catalogue.list_datasets(session, service.settings.roots, wanted, sort, cursor, limit)
        return DatasetPage(items=[dataset_summary(row) for row in rows], next_cursor=following)


@router.post("", dependencies=[Write, Unconditional], status_code=201, responses=answers(404, 412))
def register_dataset(service: ServiceDep, registration: Registration, request: Request, response: Response) -> Dataset:
    """Index a folder under the roots now instead of at the next scan; a withdrawn dataset comes back."""
    request.scope["dataset"] = registration.name
    require_admitted(request, registration.name)
    catalogue.require_servable(registration.name)
    with Session(service.engine) as session:
        _scan_now(service, registration.name)
        row = find_dataset(session, service.settings.roots, registration.name)
        if row.state == "missing":
            raise NotFound(f"{row.problem}; move it under a root first")
        response.headers["Location"] = f"datasets/{quote(row.name, safe='')}"
        return dataset_detail(row, _info(row))


@router.get("/{name}", dependencies=[Read], responses=answers(404))
def get_dataset(service: ServiceDep, name: DatasetName) -> Dataset:
    """One dataset with its identity."""
    with Session(service.engine) as session:
        row = find_dataset(session, service.settings.roots, name)
        return dataset_detail(row, _info(row))


@router.get("/{name}/lineage", dependencies=[Read], responses=answers(404))
def dataset_lineage(service: ServiceDep, request: Request, name: DatasetName) -> Lineage:
    """The dataset's text and teacher, its copies, and the runs that trained on it."""
    roots = service.settings.roots
    with Session(service.engine) as session:
        row = find_dataset(session, roots, name)
    info, digits = _info(row), hash_of(row.identity)
    if info is None:
        raise NotFound(f"dataset {name!r}: {row.problem}; restore its dataset.json")
    same = datasets_of(service.engine, roots, {digits})
    return Lineage(
        corpus=info.corpus.description or info.corpus.fingerprint,
        teacher=info.teacher.model,
        copies=[one for one in same if one != name and is_admitted(request, one)],
        runs=[] if admitted(request) else runs_on(service.runs, digits),
    )


@router.get("/{name}/removal", dependencies=[Write], responses=answers(404))
def plan_dataset_removal(service: ServiceDep, name: DatasetName) -> RemovalPlan:
    """What removing the dataset's files would take, and the word that confirms exactly this."""
    with Session(service.engine) as session:
        uri = find_dataset(session, service.settings.roots, name).folder
    plan = plan_removal(uri)
    return RemovalPlan(parts=plan.parts, files=len(plan.names), size_bytes=plan.size_bytes, confirm=plan.confirmation)


@router.delete("/{name}", dependencies=[Write, Unconditional], status_code=204, responses=answers(404, 412))
def withdraw_dataset(
    service: ServiceDep,
    request: Request,
    name: DatasetName,
    files: Annotated[bool, Query(description="remove its files, too: needs a key, and `confirm`")] = False,
    confirm: Annotated[str | None, Query(max_length=100, description="the word of GET …/removal")] = None,
) -> None:
    """Stop serving a dataset. Its files stay, and POST /v1/datasets brings it back; with `files=true` they are removed.

    Files are removed only with a key, and only if `confirm` is the word that GET …/removal gives for what is there now.
    """
    with Session(service.engine) as session:
        row = find_dataset(session, service.settings.roots, name)
        root, uri = row.root, row.folder
    if files:
        require_key(request, "files are removed")
        plan = plan_removal(uri)
        if confirm != plan.confirmation:
            raise PreconditionFailed(
                f"confirm={confirm!r}: not the word for the {plan.parts} parts of {plan.size_bytes} bytes there now; "
                f"GET /v1/datasets/{name}/removal gives it"
            )
        require_no_capture(uri)
        with _scan_held_off(service, name, root) as held:
            renew = Renewal(service.engine, held)
            for _ in remove(uri, plan):
                renew()
            with Session(service.engine) as session, session.begin():
                held.renew(session)
                session.delete(find_dataset(session, service.settings.roots, name))
        return
    with _scan_held_off(service, name, root) as held, Session(service.engine) as session, session.begin():
        held.renew(session)
        row = find_dataset(session, service.settings.roots, name)
        forget_shards(session, row)
        row.state = "withdrawn"


@router.post("/{name}/reindex", dependencies=[Write, Unconditional], status_code=202, responses=answers(404, 412))
def reindex_dataset(service: ServiceDep, name: DatasetName) -> Dataset:
    """Forget the dataset's shards; the next scan reads every manifest again.

    The dataset's state is `indexing` until that is done: GET it to check. A repeated request does not start again.
    """
    with Session(service.engine) as session:
        row = find_dataset(session, service.settings.roots, name)
        root, under_way = row.root, row.state == "indexing"
    if not under_way:
        with _scan_held_off(service, name, root) as held, Session(service.engine) as session, session.begin():
            forget(session, held, name)
    with Session(service.engine) as session:
        row = find_dataset(session, service.settings.roots, name)
        return dataset_detail(row, _info(row))


@router.get("/{name}/manifest", dependencies=[Read], responses=answers(404), response_class=Response)
def dataset_manifest(service: ServiceDep, name: DatasetName) -> Response:
    """The raw bytes of dataset.json."""
    with Session(service.engine) as session:
        row = find_dataset(session, service.settings.roots, name)
        if not row.identity:
            raise NotFound(f"dataset {name!r}: {row.problem}; restore its dataset.json")
        return Response(row.identity, media_type="application/json")


@router.get("/{name}/corpus", dependencies=[Read], responses=answers(404))
def dataset_corpus(service: ServiceDep, name: DatasetName) -> Corpus:
    """The producer's report of the corpus: documents, tokens, turns, and the files that it read or skipped."""
    with Session(service.engine) as session:
        (folder,) = dataset_figures(session, service.settings.roots, name, DatasetRow.folder)
    return Corpus(report=read_corpus_report(place_of(folder)))


@router.get("/{name}/stats", dependencies=[Read], responses=answers(404), response_model=DatasetStats)
def dataset_stats(service: ServiceDep, name: DatasetName) -> Response:
    """Statistics over all committed shards."""
    with Session(service.engine) as session:
        figures = DatasetRow.stats, DatasetRow.parts
        stats, parts = dataset_figures(session, service.settings.roots, name, *figures)
    return Response(stats or DatasetStats(parts=parts).model_dump_json(), media_type="application/json")


@router.get("/{name}/timeline", dependencies=[Read], responses=answers(404))
def dataset_timeline(
    service: ServiceDep,
    name: DatasetName,
    points: Annotated[int, Query(description="most points to answer", ge=2, le=1000)] = 200,
) -> Timeline:
    """Shards, tokens and bytes over time."""
    with Session(service.engine) as session:
        (growth,) = dataset_figures(session, service.settings.roots, name, DatasetRow.growth)
    return Timeline(points=timeline_of(growth, points))


@router.get("/{name}/extensions", dependencies=[Read], responses=answers(404))
def dataset_extensions(service: ServiceDep, name: DatasetName) -> Extensions:
    """When a dataset that grows was extended, and by how many samples and tokens; empty for one that does not."""
    figures = (
        DatasetRow.id,
        DatasetRow.folder,
        DatasetRow.parts,
        DatasetRow.shards,
        DatasetRow.samples,
        DatasetRow.tokens,
    )
    with Session(service.engine) as session:
        dataset_id, folder, parts, *now = dataset_figures(session, service.settings.roots, name, *figures)
        if parts:
            return Extensions(items=[])
        report = read_corpus_report(place_of(folder))
        commits = partial(catalogue.committed_at_s, session, dataset_id)
        return Extensions(items=extensions(report, (now[0], now[1], now[2]), commits))


def _info(row: DatasetRow) -> DatasetInfo | None:
    return DatasetInfo.from_bytes(row.identity, row.name) if row.identity else None


@contextmanager
def _scan_held_off(service: Service, name: str, root: str) -> Iterator[Lease]:
    with lease(service.engine, root, SCAN_WAIT_S) as held:
        if held is None:
            raise TryAgain(f"dataset {name!r}: its root is being scanned; try again in a moment")
        yield held


def _scan_now(service: Service, name: str) -> None:
    """Read dataset `name` again from the root that has it."""
    for root in service.settings.roots:
        if not scan_root(service.engine, root, wait_s=SCAN_WAIT_S, anew=name).done:
            raise TryAgain(f"{root.rsplit('/', 1)[-1]}: another scan is running; try again in a moment")
