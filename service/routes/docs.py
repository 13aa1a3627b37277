"""``/docs``: Swagger UI for the API's description, all of it from this server."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from koala.errors import NotFound

router = APIRouter(include_in_schema=False)

# The package has Redoc too, which nothing here shows.
_SCRIPT: Final = "swagger-ui-bundle.js"
_STYLE: Final = "swagger-ui.css"
_FOLDER: Final = StaticFiles(directory=str(files("fastapi_offline") / "static"))
_INLINE_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def _page() -> str:
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="koala-serve",
        swagger_js_url=f"docs/{_SCRIPT}",
        swagger_css_url=f"docs/{_STYLE}",
        swagger_favicon_url="playground/icon.svg",
    ).body
    return bytes(html).decode()


def _policy(page: str) -> str:
    # An inline script is allowed by its digest, so that no other one runs.
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in _INLINE_SCRIPT.findall(page)
    ]
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
    # Swagger UI's pictures are data URLs.
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


_PAGE: Final = _page()
_POLICY: Final = _policy(_PAGE)


@router.head("/docs")
@router.get("/docs")
async def docs() -> Response:
    """The page."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


@router.head("/docs/{name}")
@router.get("/docs/{name}")
async def part(name: str, request: Request) -> Response:
    """A part of the page, or a 304 for a browser that has it."""
    if name not in (_SCRIPT, _STYLE):
        raise NotFound(f"There is no part {name[:80]!r} of this page.")
    answer = await _FOLDER.get_response(name, request.scope)
    # It changes with the package: a browser asks each time, and an ETag spares the transfer.
    answer.headers["Cache-Control"] = "no-cache"
    return answer
