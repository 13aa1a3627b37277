"""A small HTTP client for ``koala generate``: enqueue, follow, fetch."""

import time
from collections.abc import Iterator
from typing import Any

import httpx

_POLL_SECONDS = 0.25


class ServerError(Exception):
    """The server refused or failed, or nobody answers; the message is for the person typing."""


class Client:
    """Talks to one gateway.

    Args:
        base_url: Where the gateway is, e.g. ``http://127.0.0.1:8000``.
        api_key: What it knows us by, where it asks.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        host = httpx.URL(self._base_url).host
        # A proxy is for other machines.
        own = host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(base_url=self._base_url, timeout=30.0, trust_env=not own)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def enqueue(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a generation request without waiting; the job object.

        Raises:
            ServerError: The request was refused, or nobody answers.
        """
        return self._json(
            "POST",
            "/v1/images/generations",
            json=request,
            headers={"Prefer": "respond-async"},
        )

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job object again and again until the job has ended.

        Raises:
            ServerError: The job is gone, or nobody answers.
        """
        while True:
            job = self._json("GET", f"/v1/jobs/{job_id}")
            yield job
            if job["status"] in ("completed", "failed", "cancelled"):
                return
            time.sleep(_POLL_SECONDS)

    def fetch(self, url: str) -> bytes:
        """The bytes of an image.

        Raises:
            ServerError: The image is gone, or nobody answers.
        """
        return self._request("GET", url).content

    def _json(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        body: dict[str, Any] = self._request(method, path, **kwargs).json()
        return body

    def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, auth=self._authorize, **kwargs)
        except httpx.ConnectError:
            raise ServerError(
                f"Nothing answers at {self._base_url}: start a server with `koala up`, or say "
                "where one is with --url."
            ) from None
        except httpx.HTTPError as error:
            raise ServerError(f"{self._base_url}: {type(error).__name__} {error}") from None
        if response.is_error:
            raise ServerError(f"{_message(response)}{self._advice(response)}")
        return response

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


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answered {response.status_code}."


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
