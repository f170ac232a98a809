"""The one error shape of the service: application/problem+json (RFC 9457)."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from arwkv_api.errors import RangeNotSatisfiable
from arwkv_store.errors import ArwkvError

log = logging.getLogger("arwkv_api.problems")

MEDIA_TYPE = "application/problem+json"
# Maximum length of a caller's value in an answer.
VALUE_LIMIT_CHARACTERS = 200


class FieldProblem(BaseModel):
    """One value of a request that was not accepted."""

    where: str = Field(examples=["query.limit"])
    message: str = Field(examples=["Input should be less than or equal to 1000"])
    value: str = Field(examples=["5000"])


class Problem(BaseModel):
    """The problem, its place, and what to do."""

    type: str = Field("about:blank", examples=["about:blank", "urn:arwkv:corrupt-shard"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["dataset 'train': not under any root; GET /v1/datasets lists the datasets"])
    instance: str = Field(examples=["/v1/datasets/train"])
    request_id: str | None = Field(None, examples=["5f0c8a2e9b7d4c31"])
    errors: list[FieldProblem] | None = None


def problem_response(
    status: int,
    detail: str,
    path: str,
    request_id: str | None,
    errors: list[FieldProblem] | None = None,
    kind: str = "about:blank",
) -> JSONResponse:
    """The response for one problem; `path` is the request's path, `kind` a URI if the status is not enough."""
    problem = Problem(
        type=kind,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=path,
        request_id=request_id,
        errors=errors,
    )
    headers = {"WWW-Authenticate": 'Bearer realm="arwkv"'} if status == 401 else {}
    if status in (429, 503):
        headers["Retry-After"] = "1"
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route: each status with the problem shape (those named below may always occur)."""
    return {
        status: {"model": Problem, "description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {}}}
        for status in sorted({*statuses, 400, 401, 403, 413, 421, 422, 429, 503})
    }


def describe(document: dict[str, Any]) -> None:
    """Add the schema of problems, because FastAPI's document has only one media type per route."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                content = answer.get("content", {})
                if MEDIA_TYPE in content:
                    content[MEDIA_TYPE] = content.pop("application/json")


def install(app: FastAPI) -> None:
    """Answer every expected error of `app` in the one shape; `Observe` answers the others."""
    app.add_exception_handler(ArwkvError, _expected)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    for away in (OperationalError, InterfaceError, TimeoutError):
        app.add_exception_handler(away, _index_away)


def _respond(
    request: Request,
    status: int,
    detail: str,
    errors: list[FieldProblem] | None = None,
    kind: str = "about:blank",
) -> JSONResponse:
    return problem_response(status, detail, request.url.path, request.scope.get("request_id"), errors, kind)


async def _expected(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ArwkvError)
    response = _respond(request, error.http_status, str(error), kind=error.problem_type)
    if isinstance(error, RangeNotSatisfiable):
        response.headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return response


async def _index_away(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SQLAlchemyError)
    log.warning("the index cannot be reached: %s", str(getattr(error, "orig", None) or error).partition("\n")[0])
    return _respond(request, 503, "the index cannot be reached; try again")


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    details = {404: "no such address; /docs lists the operations", 405: f"{request.method} is not offered here"}
    response = _respond(request, error.status_code, details.get(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(sorted(_offered(request)))
    return response


def _offered(request: Request) -> set[str]:
    """The methods of all operations at this path; the router names only those of the first."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [
        FieldProblem(
            where=".".join(map(str, entry["loc"])),
            message=entry["msg"],
            value=repr(entry.get("input"))[:VALUE_LIMIT_CHARACTERS],
        )
        for entry in error.errors()
    ]
    detail = "; ".join(f"{field.where}: {field.message}, got {field.value}" for field in fields)
    return _respond(request, 422, detail, fields)
