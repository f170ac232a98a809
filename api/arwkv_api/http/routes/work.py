"""Work in progress: captures that run, and events that say what has changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from arwkv_api.access.auth import Read, admitted, is_admitted
from arwkv_api.http.models import WorkState
from arwkv_api.http.parameters import PAGE_LIMIT
from arwkv_api.http.problems import answers
from arwkv_api.http.service import Service, ServiceDep
from arwkv_api.views.changes import FRESH_S, captures
from arwkv_store.format.heartbeat import Heartbeat

router = APIRouter(prefix="/v1", tags=["work"])
EVENTS = "text/event-stream"
# A comment after so many looks without news keeps proxies from closing the connection.
COMMENT_LOOKS = 15


class Capture(BaseModel):
    """A process that makes a dataset, or made it last."""

    dataset: str = Field(examples=["train"])
    state: WorkState = Field(description="`stopped` if it said nothing for some beats")
    heartbeat: Heartbeat


class CaptureList(BaseModel):
    items: list[Capture]


@router.get("/captures", dependencies=[Read], responses=answers())
def list_captures(
    service: ServiceDep,
    request: Request,
    state: Annotated[WorkState | None, Query(description="only captures in this state")] = None,
    dataset: Annotated[str | None, Query(max_length=255, description="only those of this dataset")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="most captures to answer")] = 100,
) -> CaptureList:
    """What the processes that make datasets said last: rate, shards done, time left, errors. Newest first."""
    found = (
        Capture(dataset=one.dataset, state=one.heartbeat.state_at(), heartbeat=one.heartbeat)
        for one in captures(service.engine, service.settings.roots)
    )
    wanted = [
        one
        for one in found
        if state in (None, one.state) and dataset in (None, one.dataset) and is_admitted(request, one.dataset)
    ]
    return CaptureList(items=wanted[:limit])


@router.get(
    "/events",
    dependencies=[Read],
    response_class=StreamingResponse,
    responses={**answers(), 200: {"description": "events without end", "content": {EVENTS: {}}}},
)
async def follow_events(
    service: ServiceDep,
    request: Request,
    follow: Annotated[bool, Query(description="false: the state now, without waiting for changes")] = True,
) -> StreamingResponse:
    """Server-sent events `datasets`, `captures` and `runs`: each when something of its kind has changed."""
    request.scope["follows"] = follow
    return StreamingResponse(
        _events(service, request, follow), media_type=EVENTS, headers={"Cache-Control": "no-store"}
    )


async def _events(service: Service, request: Request, follow: bool) -> AsyncIterator[str]:
    sent: dict[str, str] = {}
    quiet = 0
    while True:
        seen = await to_thread.run_sync(service.changes.now)
        found = {event: _shown(request, event, items) for event, items in seen.items()}
        fresh = {event: data for event, data in found.items() if sent.get(event) != data}
        sent, quiet = found, 0 if fresh else quiet + 1
        if fresh:
            yield "".join(f"event: {event}\ndata: {data}\n\n" for event, data in fresh.items())
        if not follow:
            return
        if quiet >= COMMENT_LOOKS:
            quiet = 0
            yield ": still there\n\n"
        await asyncio.sleep(FRESH_S)


def _shown(request: Request, event: str, items: list[Any]) -> str:
    """What the caller's key is for, as JSON: of a key for some datasets, nothing of runs."""
    if admitted(request):
        items = [] if event == "runs" else [one for one in items if is_admitted(request, one[0])]
    return json.dumps(items)
