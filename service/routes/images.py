"""``/v1/images/{name}``: the finished files."""

import hashlib
from typing import Annotated

import structlog
from anyio import to_thread
from fastapi import APIRouter, Header
from starlette.responses import Response

from koala.errors import ImageStoreUnavailable
from koala.store import MEDIA_TYPES, ImageStore
from service.auth import AUTH_RESPONSES, ImageRoute, ReaderDep
from service.errors import ErrorBody
from service.gateway import GatewayDep
from service.ownership import check_own_image

log = structlog.get_logger()

router = APIRouter(tags=["images"], route_class=ImageRoute)

# Nothing is ever stored under a second meaning of the same name.
_CACHE_CONTROL = "private, max-age=31536000, immutable"


@router.head("/v1/images/{name}", include_in_schema=False)
@router.get(
    "/v1/images/{name}",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
        304: {"description": "The client has it already."},
        **AUTH_RESPONSES,
        404: {"model": ErrorBody, "description": "There is no such image."},
        503: {"model": ErrorBody, "description": "The image store cannot be read."},
    },
)
async def get_image(
    gateway: GatewayDep,
    reader: ReaderDep,
    name: str,
    if_none_match: Annotated[list[str] | None, Header()] = None,
) -> Response:
    """An image's file."""
    check_own_image(reader, name)
    try:
        data, etag = await to_thread.run_sync(_read, gateway.store, name)
    except OSError as error:
        log.error("an image cannot be read", name=name, error=str(error))
        raise ImageStoreUnavailable(
            "The image store cannot be read right now; try again soon.", retry_after=2
        ) from None
    headers = {"ETag": etag, "Cache-Control": _CACHE_CONTROL}
    if _matches(etag, if_none_match or ()):
        return Response(status_code=304, headers=headers)
    gateway.metrics.images_served.labels("url").inc()
    headers |= {
        "Content-Disposition": f'inline; filename="{name}"',
        # Pages elsewhere may show it.
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return Response(data, headers=headers, media_type=gateway.store.media_type(name))


def _read(store: ImageStore, name: str) -> tuple[bytes, str]:
    data = store.get(name)
    return data, f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'


def _matches(etag: str, conditions: list[str] | tuple[()]) -> bool:
    # If-None-Match compares weakly, so a proxy's W/ prefix does not count.
    given = {tag.strip().removeprefix("W/") for line in conditions for tag in line.split(",")}
    return etag in given or "*" in given
