"""Connects to public addresses only: what a name resolves to is checked and then used, once.

A check before the request would prove nothing: the name could resolve to another address by the
time somebody connects. Here the address that was checked is the one that is connected to; TLS and
the ``Host`` header still go by the name.
"""

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final

import httpcore

from service.webhooks.addresses import is_public

# So that the patience with a dead one leaves some for the next.
_MOST_ADDRESSES: Final = 3


class AddressRefused(Exception):
    """The name resolves to nothing but addresses that a webhook may not go to."""


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """A network backend of httpcore that refuses what is not public.

    Args:
        allow_private: Refuse nothing.
        network: What opens the connections.
    """

    def __init__(
        self, *, allow_private: bool, network: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._allow_private = allow_private
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of ``host`` that may be had and answers.

        ``timeout`` (seconds) is for the name and all addresses together.

        Raises:
            AddressRefused: No address may be had.
            httpcore.ConnectError: The name does not resolve, or nobody answers.
            httpcore.ConnectTimeout: It took too long.
        """
        problem: Exception = httpcore.ConnectError(f"{host} has no address")
        try:
            async with asyncio.timeout(timeout):
                addresses = self._permitted(host, await _resolve(host, port))[:_MOST_ADDRESSES]
                share = timeout / len(addresses) if timeout and addresses else None
                for address in addresses:
                    try:
                        return await self._network.connect_tcp(
                            address, port, share, local_address, socket_options
                        )
                    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                        problem = error
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from None
        raise problem

    async def sleep(self, seconds: float) -> None:
        """As httpcore wants it."""
        await asyncio.sleep(seconds)

    def _permitted(self, host: str, addresses: list[str]) -> list[str]:
        if self._allow_private:
            return addresses
        permitted = [address for address in addresses if is_public(ip_address(address))]
        if addresses and not permitted:
            raise AddressRefused(f"{host} is at {', '.join(addresses)}, which is not public")
        return permitted


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"{host} does not resolve: {error}") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
