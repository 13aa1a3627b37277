"""``/``: the playground, ``/admin``: the operator's page, and what they are made of."""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from koala.errors import NotFound

router = APIRouter(include_in_schema=False)

_FOLDER: Final = files("service") / "playground"
_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Read once: the page is small, and nothing else can be had by any name.
_FILES: Final = {
    file.name: file.read_bytes()
    for file in _FOLDER.iterdir()
    if file.name.rpartition(".")[2] in _MEDIA_TYPES
}
# Nothing in the page comes from elsewhere, and it sends nothing there. Previews are data URLs, and
# images that need a key blobs.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.head("/")
@router.get("/")
async def home() -> Response:
    """The page."""
    return _answer("index.html")


@router.head("/admin")
@router.get("/admin")
async def admin() -> Response:
    """The operator's page; what it shows, it asks the API for."""
    return _answer("admin.html")


@router.head("/playground/{name}")
@router.get("/playground/{name}")
async def part(name: str) -> Response:
    """A part of the page."""
    if name not in _FILES:
        raise NotFound(f"There is no part {name[:80]!r} of the playground.")
    return _answer(name)


def _answer(name: str) -> Response:
    return Response(
        _FILES[name],
        media_type=_MEDIA_TYPES[name.rpartition(".")[2]],
        # Parts of one version belong together: each is asked for again, and is small.
        headers={"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY},
    )
