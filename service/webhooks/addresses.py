"""Which addresses a webhook may go to: such as anybody on the internet could reach."""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
# Python's tables of 3.11 do not know it yet.
_DOCUMENTATION: Final = IPv6Network("3fff::/20")
# What lies behind is an IPv4 address in the last 32 bits (RFC 6052).
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether ``address`` is one host on the internet.

    Loopback, private, link-local, shared (CGNAT), reserved and multicast addresses are not, and no
    IPv6 address is that leads to such an IPv4 address.
    """
    if isinstance(address, IPv6Address):
        embedded = _embedded(address)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_UNICAST or address in _DOCUMENTATION:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def literal(host: str) -> Address | None:
    """The address that ``host`` spells; ``None`` for a name.

    Resolvers take more spellings of IPv4 than four decimal numbers, such as ``127.1``,
    ``0x7f000001`` and ``2130706433``; so does this.
    """
    host = host.rstrip(".")
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    return IPv4Address(address.packed[-4:]) if address in _NAT64 else None
