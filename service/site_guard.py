"""Refuses Host headers that this gateway does not serve, and cross-site requests.

A browser can be made to send requests here by any page that its user visits. Two rules keep such
pages out:

- **Host** (against DNS rebinding). A page at ``evil.example`` whose name suddenly resolves to
  127.0.0.1 is same-origin with this gateway, so the browser lets it read everything; only the Host
  header still says ``evil.example``. Where no API keys are configured, only known Hosts are served.
  An IP literal is always one, because rebinding needs a name.
- **Origin** (against cross-site request forgery). A page of another origin may send some requests
  without being able to read the answers. Those that can change something are refused.

Programs that are not browsers send neither ``Origin`` nor ``Sec-Fetch-Site`` and pass the second
rule. It is the one of Go's ``net/http.CrossOriginProtection``.
"""

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from koala.errors import CrossSiteRequest, InvalidRequest, KoalaError, UnknownHost
from koala.settings import Settings
from service.errors import error_response
from service.observe import QUIET_ROUTES

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# RFC 3986's IPv6 literal or reg-name, and RFC 9110's optional port.
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?)\]|(?P<name>[\w.~!$&'()*+,;=%-]+))"
    r"(?::(?P<port>\d{0,5}))?",
    re.ASCII,
)


class SiteGuard:
    """Pure ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = None if settings.login_required else _served_hosts(settings)
        self._origins = frozenset(_origin(text) for text in _trusted_origins(settings))
        self._all_origins = "*" in settings.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> KoalaError | None:
        if scope["path"] in QUIET_ROUTES:
            # Probes send a pod's address, Prometheus a container's name.
            return None
        headers = Headers(scope=scope)
        # HTTP/1.0 has no Host, and no browser speaks it. In HTTP/1.1 h11 insists on exactly one.
        host = headers.get("host")
        if host is not None:
            match = _AUTHORITY.fullmatch(host)
            if match is None:
                return InvalidRequest(
                    f"The Host header {host[:80]!r} is not a host name or address with an optional "
                    "port.",
                    code="invalid_host",
                )
            if not self._serves(match):
                return UnknownHost(
                    f"This gateway does not serve the Host {host[:80]!r}: without API keys it "
                    "serves localhost, IP addresses, and what KOALA_PUBLIC_URL and "
                    "KOALA_ALLOWED_HOSTS name."
                )
        if scope["method"] not in _SAFE_METHODS and self._is_cross_site(headers, host):
            return CrossSiteRequest(
                "Pages of other sites may not send this request: set KOALA_CORS_ORIGINS to the "
                "origins that may, or KOALA_PUBLIC_URL where a proxy changes the Host header."
            )
        return None

    def _serves(self, authority: re.Match[str]) -> bool:
        if self._hosts is None or "*" in self._hosts:
            return True
        if authority["v6"] is not None:
            return _is_address(authority["v6"])
        name = authority["name"].lower().removesuffix(".")
        return (
            _is_address(name)
            or name in self._hosts
            # Of a.b.example: *.b.example and *.example.
            or any(f"*{name[i:]}" in self._hosts for i in range(len(name)) if name[i] == ".")
        )

    def _is_cross_site(self, headers: Headers, host: str | None) -> bool:
        origin = headers.get("origin")
        if self._all_origins or (origin is not None and _origin(origin) in self._origins):
            return False
        site = headers.get("sec-fetch-site")
        if site is not None:
            # "same-site" is another origin too: another port of this machine, another subdomain.
            return site not in ("same-origin", "none")
        if origin is None:
            return False
        # Browsers send no Sec-Fetch-Site over plain http, other than to this machine. The scheme
        # is not compared: behind a proxy only the proxy knows it.
        scheme, _, authority = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme.lower())
        return host is None or _with_port(authority, port) != _with_port(host, port)


def _served_hosts(settings: Settings) -> frozenset[str]:
    hosts = {"localhost", "*.localhost", settings.host.lower(), *settings.host_names}
    if settings.public_url is not None:
        hosts.add(urlsplit(settings.public_url).hostname or "")
    return frozenset(hosts)


def _trusted_origins(settings: Settings) -> list[str]:
    public = [] if settings.public_url is None else [settings.public_url]
    return settings.allowed_origins + public


def _origin(url: str) -> tuple[str, str]:
    scheme, _, rest = url.strip().lower().partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    return scheme, _with_port(authority, _DEFAULT_PORTS.get(scheme))


def _with_port(authority: str, default: int | None) -> str:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return authority
    return f"{match['v6'] or match['name']}:{match['port'] or default}".lower()


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
