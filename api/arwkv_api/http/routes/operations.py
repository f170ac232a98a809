"""Operations for administrators: liveness, readiness, metrics."""

import math

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from arwkv_api.access.auth import ReadAll
from arwkv_api.http.models import Health, Readiness
from arwkv_api.http.problems import answers
from arwkv_api.http.service import ServiceDep
from arwkv_api.index.metrics import MEDIA_TYPE, exposition, scan_lag
from arwkv_api.index.orm import DatasetRow

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health() -> Health:
    """The process is alive."""
    return Health()


@router.get("/ready", responses={503: {"model": Readiness, "description": "not yet, or the index cannot be reached"}})
def ready(service: ServiceDep) -> JSONResponse:
    """The index can be reached, and every root was scanned recently."""
    try:
        with Session(service.engine) as session:
            scan = scan_lag(session, service.settings)
            datasets = session.scalar(select(func.count()).select_from(DatasetRow)) or 0
    except SQLAlchemyError as error:
        answer = Readiness(ready=False, database=type(error).__name__, datasets=0, scan_lag_s=None)
    else:
        known_s = scan.lag_s if math.isfinite(scan.lag_s) else None
        answer = Readiness(ready=not scan.late, database="reachable", datasets=datasets, scan_lag_s=known_s)
    return JSONResponse(answer.model_dump(), 200 if answer.ready else 503)


@router.get("/metrics", dependencies=[ReadAll], responses=answers(), response_class=Response)
def metrics(service: ServiceDep) -> Response:
    """Figures for Prometheus."""
    return Response(exposition(service.engine, service.settings), media_type=MEDIA_TYPE)
