"""Every error a client can see, in one hierarchy that knows its HTTP face.

The body follows OpenAI's form ``{"error": {"message", "type", "param", "code"}}``. ``should_retry``
becomes the ``x-should-retry`` header, which the ``openai`` client obeys before anything else.
"""

from typing import Any, ClassVar


class KoalaError(Exception):
    """Base of all errors with a meaning for the client.

    Args:
        message: A full sentence for a person.
        param: The request field at fault, if one is.
        code: A machine-readable reason that overrides the class's own.
        retry_after: Seconds until a retry is worth it.
        headers: More response headers.
    """

    status: int = 500
    type: str = "server_error"
    default_code: ClassVar[str | None] = "internal_error"
    should_retry: ClassVar[bool | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body of the response, in OpenAI's form."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response_headers(self) -> dict[str, str]:
        """``Retry-After`` and ``x-should-retry`` where they apply, and the error's own headers."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


class InvalidRequest(KoalaError):
    """A field or the body cannot be honoured; ``param`` names the field."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class Unauthorized(KoalaError):
    """No API key, or one that is not known here."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"
    should_retry = False


class PermissionDenied(KoalaError):
    """The API key may not do this."""

    status = 403
    type = "invalid_request_error"
    default_code = "insufficient_permissions"
    should_retry = False


class ClientClosedRequest(InvalidRequest):
    """The client hung up, or ended its side of the connection, while its call waited."""

    # What proxies and log readers know it as.
    status = 499
    default_code = "client_closed_request"
    should_retry = False


class CrossSiteRequest(PermissionDenied):
    """A browser sent this for a page of another origin, which may not change anything here."""

    default_code = "cross_site_request"


class UnknownHost(KoalaError):
    """The Host header names a host that this gateway does not serve."""

    status = 421
    type = "invalid_request_error"
    default_code = "host_not_allowed"
    should_retry = False


class IdempotencyConflict(InvalidRequest):
    """The ``Idempotency-Key`` was used before, with another body."""

    status = 422
    default_code = "idempotency_key_reused"
    should_retry = False


class PayloadTooLarge(InvalidRequest):
    """The request body is over ``KOALA_MAX_BODY_BYTES``."""

    status = 413
    default_code = "request_too_large"


class HeadersTooLarge(InvalidRequest):
    """The request's headers are longer than any client needs."""

    status = 431
    default_code = "headers_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The request body is not ``application/json``."""

    status = 415
    default_code = "unsupported_media_type"


class NotFound(InvalidRequest):
    """There is nothing at this address."""

    status = 404
    default_code = "not_found"


class ModelNotFound(NotFound):
    """The request names a model that is not served here."""

    default_code = "model_not_found"


class JobNotFound(NotFound):
    """No such job: it never was, or its result has expired."""

    default_code = "job_not_found"


class JobUnreadable(KoalaError):
    """What is stored of the job cannot be read: another version left it, or it is damaged.

    Args:
        message: A full sentence for a person.
        owner: Whose job it is, as far as that is known.
    """

    default_code = "job_unreadable"
    should_retry = False

    def __init__(self, message: str, *, owner: str) -> None:
        super().__init__(message, param="id")
        self.owner = owner


class ImageNotFound(NotFound):
    """No such image: it never was, or it has expired."""

    default_code = "image_not_found"


class RequestTimeout(InvalidRequest):
    """The client took too long to send its request."""

    status = 408
    default_code = "request_timeout"


class MethodNotAllowed(InvalidRequest):
    """The address exists, the method does not."""

    status = 405
    default_code = "method_not_allowed"


class RateLimited(KoalaError):
    """The API key sends more requests than ``KOALA_RATE_LIMIT`` allows."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class QueueFull(KoalaError):
    """Admission refused: as many jobs are waiting as may, in all or of this API key.

    Args:
        message: A full sentence for a person.
        waiting: Jobs that wait.
        code: Overrides the class's own.
    """

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"

    def __init__(self, message: str, *, waiting: int, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.waiting = waiting


class JobFailed(KoalaError):
    """The job ran and failed; the code says why. A repeat of the request would fail alike."""

    default_code = "generation_failed"
    should_retry = False


class DeadlineExceeded(JobFailed):
    """The job could not be done by its ``deadline_seconds``."""

    status = 504
    default_code = "deadline_exceeded"


class ContentPolicyViolation(JobFailed):
    """The safety check withholds all images of the job."""

    status = 400
    type = "invalid_request_error"
    default_code = "content_policy_violation"


class LoraUnusable(JobFailed):
    """A LoRA that the request names cannot be used; ``param`` names the field."""

    status = 400
    type = "invalid_request_error"
    default_code = "lora_unusable"


class JobCancelled(KoalaError):
    """The job was cancelled before it finished."""

    status = 409
    type = "invalid_request_error"
    default_code = "job_cancelled"
    should_retry = False


class QueueUnavailable(KoalaError):
    """Redis cannot be reached right now."""

    status = 503
    default_code = "queue_unavailable"


class TooManyConnections(KoalaError):
    """More requests are open than ``KOALA_MAX_CONNECTIONS`` allows."""

    status = 503
    default_code = "too_many_connections"


class ImageStoreUnavailable(KoalaError):
    """The image store cannot be written or read right now."""

    status = 503
    default_code = "image_store_unavailable"


class WaitTimeout(KoalaError):
    """A waiting call ran into ``KOALA_SYNC_TIMEOUT``; the job itself goes on."""

    status = 504
    default_code = "wait_timeout"
    should_retry = False
