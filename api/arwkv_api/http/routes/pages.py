"""The page and the documentation, only from files of this package."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).parent.parent.parent / "page"

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=PAGE)


@router.get("/")
def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html")


@router.get("/docs")
def documentation() -> FileResponse:
    """Every operation, to read and to try."""
    return FileResponse(PAGE / "docs.html")
