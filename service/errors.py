"""From exceptions to responses: every error leaves in OpenAI's form."""

import difflib
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import redis
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from koala.errors import (
    ClientClosedRequest,
    InvalidRequest,
    KoalaError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    QueueUnavailable,
    RequestTimeout,
    UnsupportedMediaType,
)
from service.requests import GenerationRequest

log = structlog.get_logger()

_BY_STATUS: Final[Mapping[int, type[KoalaError]]] = {
    404: NotFound,
    405: MethodNotAllowed,
    408: RequestTimeout,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
}


# FastAPI's words for any trouble while it reads a body, none of which is JSON's own.
_UNREADABLE_BODY: Final = "There was an error parsing the body"

# Longer names of fields are cut.
_LONGEST_FIELD: Final = 80


class ClientGone(Exception):
    """The client hung up while it waited; there is nobody to answer."""


class _OtherError(KoalaError):
    """What Starlette or FastAPI refuse by a status that has no class of ours."""

    def __init__(self, status: int, detail: str, headers: dict[str, str]) -> None:
        try:
            name = HTTPStatus(status).phrase
        except ValueError:
            name = f"HTTP {status}"
        code = re.sub("[^a-z0-9]+", "_", name.lower().replace("'", ""))
        super().__init__(f"{detail[:200].rstrip('.')}.", code=code, headers=headers)
        self.status = status
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.type = "rate_limit_error"
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self.type = "invalid_request_error"


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="A sentence for people.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field at fault, if one is.")
    code: str | None = Field(description="The reason, for programs.")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


def install(app: FastAPI) -> None:
    """Make ``app`` answer all errors in OpenAI's form."""
    app.add_exception_handler(KoalaError, _koala_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(redis.RedisError, _redis_error)
    app.add_exception_handler(ClientGone, _client_gone)


def error_response(error: KoalaError) -> Response:
    """The response for an error."""
    # Escaped to ASCII: a message may quote text that is not valid Unicode.
    return Response(
        json.dumps(error.body()),
        error.status,
        headers=error.response_headers(),
        media_type="application/json",
    )


async def _koala_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, KoalaError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_explain(error.errors()[0]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers, path = dict(error.headers or {}), request.url.path[:200]
    if (error.status_code, error.detail) == (400, _UNREADABLE_BODY):
        return error_response(InvalidRequest("The request body cannot be read as JSON."))
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        return error_response(_OtherError(error.status_code, str(error.detail), headers))
    message = str(error.detail)
    if kind is NotFound:
        message = f"There is nothing at {path}."
    elif kind is MethodNotAllowed:
        message = f"{request.method[:20]} is not possible at {path}."
    return error_response(kind(message, headers=headers))


async def _redis_error(request: Request, error: Exception) -> Response:
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        path = request.url.path[:200]
        log.error("redis is out of memory", error=str(error), path=path)
        return error_response(
            QueueUnavailable(
                "The queue's memory is full; it becomes free as finished jobs expire.",
                code="queue_out_of_memory",
                retry_after=30,
            )
        )
    log.warning("the queue cannot be reached", error=str(error), path=request.url.path[:200])
    return error_response(
        QueueUnavailable("The queue cannot be reached right now; try again soon.", retry_after=2)
    )


async def _client_gone(_: Request, __: Exception) -> Response:
    # Read only where the client has ended its own side of the connection and no more.
    return error_response(
        ClientClosedRequest(
            "The client ended its side of the connection while its call waited, which is taken "
            "for a hang-up."
        )
    )


def _explain(problem: Mapping[str, Any]) -> InvalidRequest:
    kind, location, message = problem["type"], problem["loc"], str(problem["msg"])
    if kind == "json_invalid":
        return InvalidRequest(
            f"The request body is not valid JSON: {problem['ctx']['error']} at character "
            f"{location[1]}.",
            code="invalid_json",
        )
    # The first part is where the field was: body, query, path.
    field = _shortened(".".join(str(part) for part in location[1:]))
    if kind == "string_unicode" and not field:
        return InvalidRequest("A field's name has lone surrogates.", code="unknown_field")
    if not field:
        return InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    if kind == "missing":
        return InvalidRequest(f"`{field}` is required.", param=field, code="missing_field")
    if kind == "extra_forbidden":
        return InvalidRequest(_unknown(field), param=field, code="unknown_field")
    message = message.replace("Input should be", "must be").replace("String should", "must")
    return InvalidRequest(f"`{field}` {message}.", param=field)


def _unknown(field: str) -> str:
    similar = difflib.get_close_matches(field, GenerationRequest.model_fields, n=1)
    hint = f"; did you mean `{similar[0]}`?" if similar else "."
    return f"`{field}` is not a field that is supported here{hint}"


def _shortened(field: str) -> str:
    return field if len(field) <= _LONGEST_FIELD else f"{field[:_LONGEST_FIELD]}..."
