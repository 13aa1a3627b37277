"""``/docs``: Swagger UI for the API's description, allowed exactly what it needs."""

import base64
import hashlib
import re
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_SCRIPT_URL: Final = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui-bundle.js"
_STYLE_URL: Final = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui.css"
_INLINE_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def _page() -> str:
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="koala-serve",
        swagger_js_url=_SCRIPT_URL,
        swagger_css_url=_STYLE_URL,
        # Instead of a picture from a third place.
        swagger_favicon_url="data:,",
    ).body
    return bytes(html).decode()


def _policy(page: str) -> str:
    # An inline script is allowed by its digest, so that no other one runs.
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in _INLINE_SCRIPT.findall(page)
    ]
    scripts = " ".join([_SCRIPT_URL, *(f"'sha256-{digest}'" for digest in digests)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_STYLE_URL} 'unsafe-inline'; "
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
