"""What can be said of a ``webhook_url`` at the request; the rest shows when it is resolved."""

import re
from typing import Final, NoReturn

import httpx

from koala.errors import InvalidRequest
from koala.settings import Settings
from service.webhooks.addresses import is_public, literal

# Underscores are in no host name by the standards, but in those that containers get.
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)


def check_webhook_url(text: str, settings: Settings) -> None:
    """Refuse what is no URL that a webhook may go to, as far as that shows by looking at it.

    Raises:
        InvalidRequest: It is none, or nothing here can sign webhooks.
    """
    if settings.webhook_secret is None:
        _refuse(
            "is not possible on this server: it has no KOALA_WEBHOOK_SECRET to sign webhooks with"
        )
    # The parser that the delivery uses: two could understand one text in two ways.
    try:
        url = httpx.URL(text)
        # Decoded here, since a name that begins with xn-- may be the code of none.
        name = url.host
    except (httpx.InvalidURL, UnicodeError) as error:
        _refuse(f"is not a URL: {str(error).rstrip('.')}")
    if url.scheme not in ("http", "https"):
        _refuse("must begin with https:// or http://")
    if url.userinfo:
        _refuse("must not have a user name or password: verify the signature instead")
    if "#" in text:
        _refuse("must not have a fragment (#): it would not be sent")
    if url.port is not None and not 1 <= url.port <= 65_535:
        _refuse("must have a port from 1 to 65535, or none")
    _check_host(url, name, settings)


def _check_host(url: httpx.URL, shown: str, settings: Settings) -> None:
    host = url.raw_host.decode("ascii")
    address = literal(host)
    # With a % an IPv6 address names one of our own interfaces.
    if "%" in host or (address is None and not _NAME.fullmatch(host)):
        _refuse("must have a host name or an address")
    if settings.webhook_allow_private:
        return
    name = host.rstrip(".").lower()
    is_local = name == "localhost" or name.endswith(".localhost")
    if is_local or (address is not None and not is_public(address)):
        _refuse(
            f"must not lead to {shown[:80]}: private, loopback and reserved addresses are "
            "refused unless the server has KOALA_WEBHOOK_ALLOW_PRIVATE=1"
        )


def _refuse(reason: str) -> NoReturn:
    raise InvalidRequest(f"`webhook_url` {reason}.", param="webhook_url")
