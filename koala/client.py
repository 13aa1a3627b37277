"""An HTTP client for ``koala generate``: enqueue, follow, cancel, fetch."""

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, TypeVar

import httpx
from httpx_sse import SSEError, aconnect_sse

from koala import answers
from koala.patience import Patience, ServerError

_TIMEOUT_SECONDS: Final = 30.0
# A stream has a heartbeat every 15 seconds: this long a silence is a lost connection.
_SILENCE_SECONDS: Final = 45.0
# What a proxy answers while the gateway behind it restarts, and a gateway without its queue.
_AWAY: Final = frozenset({502, 503, 504})
_ENDS: Final = frozenset({"completed", "failed", "cancelled"})
_LAST_PORT: Final = 65_535
# A server may name any number of seconds; a longer wait is cut here, and the user asks again.
_LONGEST_RETRY_AFTER: Final = 3600.0


_Kind = TypeVar("_Kind", bound=answers.Answer)


class Busy(ServerError):
    """The server takes no more requests right now.

    Args:
        message: What it said.
        retry_after: Seconds until the next try is worth it.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(ServerError):
    """The server will not do this; another request may fare better."""


def url_problem(url: str) -> str | None:
    """Why no request can be sent to ``url``; ``None``: one can."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        return str(error)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return "it does not begin with http:// or https:// and a host"
    if parsed.port is not None and parsed.port > _LAST_PORT:
        return f"there is no port {parsed.port}"
    return None


class Client:
    """Talks to one gateway, from one event loop.

    Once a gateway has answered, a connection that is lost is made again for half a minute.

    Args:
        base_url: Where the gateway is, e.g. ``http://127.0.0.1:8000``; one without a
            ``url_problem``.
        api_key: What it knows us by, where it asks.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._has_answered = False
        host = httpx.URL(self._base_url).host
        # A proxy is for other machines.
        own = host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.AsyncClient(
            base_url=self._base_url, timeout=_TIMEOUT_SECONDS, trust_env=not own
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def enqueue(self, request: Mapping[str, Any]) -> str:
        """Send a generation request without waiting; the job's id.

        Raises:
            Busy: The queue is full or a rate limit is reached; nothing was admitted.
            Refused: The request itself was refused.
            ServerError: Nobody answers, or not to us.
        """
        # With a key, a request whose answer was lost can be sent again and is one job.
        headers = {"Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex}
        response = await self._request(
            "POST", "/v1/images/generations", json=dict(request), headers=headers
        )
        return self._read(answers.Admitted, response.content).id

    async def follow(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """A job's events as the server tells them, up to and with its end.

        A stream that is cut is taken up again behind the last event that came.

        Raises:
            ServerError: The job is gone, or the connection was lost and stays so.
        """
        patience = self._patience(f"The job {job_id} goes on.")
        last_id = ""
        while True:
            try:
                async with aconnect_sse(
                    self._http,
                    "GET",
                    f"/v1/jobs/{job_id}/events",
                    auth=self._authorize,
                    headers={"Last-Event-ID": last_id} if last_id else {},
                    timeout=httpx.Timeout(_TIMEOUT_SECONDS, read=_SILENCE_SECONDS),
                ) as source:
                    if not source.response.is_success:
                        await source.response.aread()
                        self._check(source.response)
                    async for event in source.aiter_sse():
                        patience.restore()
                        last_id = event.id or last_id
                        if not event.data or event.event == "shutdown":
                            continue
                        self._read(answers.Event, event.data)
                        yield event.json()
                        if event.event in _ENDS:
                            return
                reason = "it ended the stream of events"
            except _Away as error:
                reason = str(error)
            except (httpx.TransportError, SSEError) as error:
                reason = _in_words(error)
            await patience.wait(reason)

    async def cancel(self, job_id: str) -> str:
        """Cancel a job; its status then, which is another one if it ended before.

        Raises:
            ServerError: Nobody answers, or the job is not ours to cancel.
        """
        response = await self._request("POST", f"/v1/jobs/{job_id}/cancel")
        return self._read(answers.Status, response.content).status

    async def fetch(self, url: str) -> bytes:
        """The bytes of an image.

        Raises:
            ServerError: The image is gone, or nobody answers.
        """
        problem = None if url.startswith("/") else url_problem(url)
        if problem is not None:
            raise ServerError(f"{self._base_url} names an image that cannot be fetched: {problem}.")
        return (await self._request("GET", url)).content

    def job_url(self, job_id: str) -> str:
        """Where a job can be looked at."""
        return f"{self._base_url}/v1/jobs/{job_id}"

    async def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        patience = self._patience()
        while True:
            try:
                response = await self._http.request(method, path, auth=self._authorize, **kwargs)
                self._check(response)
            except httpx.ConnectError as error:
                if not self._has_answered:
                    raise ServerError(
                        f"Nothing answers at {self._base_url}: start a server with `koala up`, or "
                        "say where one is with --url."
                    ) from None
                reason = _in_words(error)
            except httpx.TransportError as error:
                reason = _in_words(error)
            except httpx.HTTPError as error:
                raise ServerError(f"{self._base_url}: {_in_words(error)}") from None
            except _Away as error:
                if not self._has_answered:
                    raise ServerError(str(error)) from None
                reason = str(error)
            else:
                self._has_answered = True
                return response
            await patience.wait(reason)

    def _read(self, kind: type[_Kind], text: bytes | str) -> _Kind:
        try:
            return answers.read(kind, text)
        except answers.AnswerError as error:
            raise ServerError(
                f"{self._base_url} answers other than a gateway of koala does: {error}."
            ) from None

    def _patience(self, consolation: str = "") -> Patience:
        return Patience(self._base_url, consolation)

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        message = _message(response)
        may_retry = response.headers.get("x-should-retry") != "false"
        retry_after = response.headers.get("Retry-After", "")
        match response.status_code:
            case httpx.codes.TOO_MANY_REQUESTS if may_retry and retry_after.isdecimal():
                raise Busy(message, min(float(retry_after), _LONGEST_RETRY_AFTER))
            case status if status in _AWAY and may_retry:
                raise _Away(message)
            case httpx.codes.UNAUTHORIZED | httpx.codes.FORBIDDEN:
                raise ServerError(f"{message}{self._advice(response)}")
            case _:
                raise Refused(message)

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        # Images may be served from elsewhere, where the key is nobody's business.
        if self._api_key is not None and _origin(request.url) == _origin(self._http.base_url):
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    def _advice(self, response: httpx.Response) -> str:
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return ""
        if self._api_key is None:
            return " Give yours with --api-key or KOALA_API_KEY."
        return " See --api-key and KOALA_API_KEY."


class _Away(Exception):
    """An answer that says that the server is away for a moment."""


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        there = response.headers.get("Location")
        where = "" if there is None else f" and refers to {there}"
        return f"{response.request.url} answered {response.status_code}{where}."


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
