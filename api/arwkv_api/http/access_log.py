"""Gives every request an id, a line in the log, an entry in the metrics, and the security headers."""

import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arwkv_api.http.problems import problem_response
from arwkv_api.index.metrics import REQUESTS, SECONDS, SENT_BYTES

log = logging.getLogger("arwkv_api.access")
audit = logging.getLogger("arwkv_api.audit")
# Requests by other methods change nothing.
READING = ("GET", "HEAD", "OPTIONS")

FAILED = "the service failed; the traceback is in its log under this request_id"
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Observe:
    """Outermost ASGI layer; a caller's X-Request-ID is kept if it is a short plain word."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = scope["request_id"] = given if _ACCEPTED_ID.fullmatch(given) else secrets.token_hex(8)
        began, began_answer, status, sent_bytes = time.perf_counter(), False, 500, 0

        async def watched(message: Message) -> None:
            nonlocal began_answer, status, sent_bytes
            if message["type"] == "http.response.start":
                began_answer = True
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            # If part of the answer was sent, the server must break the connection; otherwise it sends a normal error.
            if began_answer:
                raise
            log.exception("%s %s failed", scope["method"], scope["path"], extra={"fields": {"request_id": request_id}})
            await problem_response(500, FAILED, scope["path"], request_id)(scope, receive, watched)
        finally:
            _record(scope, status, sent_bytes, time.perf_counter() - began)


def _record(scope: Scope, status: int, sent_bytes: int, took_s: float) -> None:
    route = getattr(scope.get("route"), "path", None) or "unmatched"
    REQUESTS.labels(scope["method"], route, status).inc()
    SECONDS.labels(route).observe(took_s)
    SENT_BYTES.labels(route).inc(sent_bytes)
    client = scope.get("client") or ("-", 0)
    fields = {
        "request_id": scope["request_id"],
        "client": client[0],
        "key": scope.get("key_name"),
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "sent_bytes": sent_bytes,
        "took_ms": round(took_s * 1000, 2),
    }
    log.info("%s %s %d", scope["method"], scope["path"], status, extra={"fields": fields})
    if scope["method"] not in READING:
        dataset = scope.get("dataset") or scope.get("path_params", {}).get("name")
        words = (scope["method"], scope["path"], dataset, scope.get("key_name", "anyone"), status)
        audit.info("%s %s of %s by %s: %d", *words, extra={"fields": {**fields, "dataset": dataset}})


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and a request's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """One readable line; a line break in a caller's text cannot start a second line."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().encode("unicode_escape").decode()
        fields = getattr(record, "fields", {})
        if "took_ms" in fields:
            message += (
                f" {fields['sent_bytes']:,} B {fields['took_ms']:.1f} ms {fields['client']} {fields['request_id']}"
            )
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()}: {message}"


def configure_logging(form: str) -> None:
    """Send every logger's lines to stderr, as text or as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # This module already writes a line for each request.
    logging.getLogger("uvicorn.access").disabled = True
