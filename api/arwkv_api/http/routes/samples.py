"""One sample of a dataset, decoded for people."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from arwkv_api.access.auth import Read
from arwkv_api.http.parameters import LARGEST_ID, DatasetName
from arwkv_api.http.problems import answers
from arwkv_api.http.service import ServiceDep
from arwkv_api.index.orm import ManifestRow, ShardRow
from arwkv_api.index.query import find_dataset, still_indexed
from arwkv_api.roots.finding import place_of
from arwkv_api.roots.manifests import ShardState, parse_manifest
from arwkv_api.views.preview import SamplePreview, preview_of
from arwkv_api.views.tokenizer import decoder_for
from arwkv_store.errors import NotFound
from arwkv_store.format.schema import DatasetInfo

router = APIRouter(prefix="/v1/datasets/{name}/samples", tags=["samples"])


@router.get("/{sample_id}", dependencies=[Read], responses=answers(404, 409))
def read_sample(
    service: ServiceDep,
    name: DatasetName,
    sample_id: Annotated[int, Path(ge=0, le=LARGEST_ID, description="the sample's id", examples=[0])],
    first: Annotated[int, Query(ge=0, le=LARGEST_ID, description="first position to show")] = 0,
    limit: Annotated[int, Query(ge=1, le=2048, description="most tokens to show")] = 256,
    top: Annotated[int, Query(ge=0, le=50, description="alternatives at each token")] = 5,
) -> SamplePreview:
    """A sample's text, the teacher's entropy at each token, and the most likely tokens."""
    with Session(service.engine) as session:
        dataset = find_dataset(session, service.settings.roots, name)
        where = (ShardRow.dataset_id == dataset.id, ShardRow.state == ShardState.COMMITTED)
        shard = session.scalar(
            select(ShardRow)
            .where(*where, ShardRow.last_sample_id >= sample_id)
            .order_by(ShardRow.last_sample_id)
            .limit(1)
        )
        if shard is None or shard.first_sample_id > sample_id:
            if dataset.state == "indexing":
                raise still_indexed(name)
            raise NotFound(f"dataset {name!r}: sample {sample_id} is in no committed shard")
        manifest = parse_manifest(session.get_one(ManifestRow, shard.id).raw)
        info, place, part = DatasetInfo.from_bytes(dataset.identity, name), place_of(dataset.folder), shard.part
    # Outside the session: a store may be slow, and connections to the index are few.
    sample = service.previews.sample(place, info, manifest, sample_id)
    return preview_of(sample, part, first, limit, top, decoder_for(place, info))
