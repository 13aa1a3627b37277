"""Which addresses a webhook may go to: such as anybody on the internet could reach."""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address

# What IANA's special-purpose address registries do not call globally reachable, as of 2025:
# https://www.iana.org/assignments/iana-ipv4-special-registry
# https://www.iana.org/assignments/iana-ipv6-special-registry
# Written down, since Python's own tables differ from version to version. The few anycast addresses
# within these blocks that are reachable (192.0.0.9, 192.0.0.10, 2001:1::1 and so on) serve
# protocols of the network, not webhooks, and are refused with them.
_SPECIAL_V4: Final = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared between a carrier and its customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # once the relays of 6to4
        "192.168.0.0/16",  # private use
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast, which has a registry of its own
        "240.0.0.0/4",  # reserved, and the limited broadcast
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
# Outside of global unicast everything is special.
_SPECIAL_V6: Final = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID and others
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
# Where clouds tell a machine its credentials. Most are in the blocks above; they are listed since
# one is not, and to be found here.
_METADATA: Final = frozenset(
    ip_address(address)
    for address in (
        "169.254.169.254",  # AWS, Azure, Google, Oracle, DigitalOcean, OpenStack and others
        "169.254.170.2",  # AWS, of a container
        "169.254.170.23",  # AWS, of a pod
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS, of a pod
        "fd20:ce::254",  # Google
        "fe80::a9fe:a9fe",  # OpenStack
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure, in the middle of public addresses
        "192.0.0.192",  # Oracle, before
    )
)
# What lies behind is an IPv4 address in the last 32 bits (RFC 6052). Networks without IPv4 get it
# from their resolver for every host that has no IPv6, so it is as public as that address.
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether ``address`` is one host on the internet.

    Loopback, private, link-local, shared (CGNAT), reserved and multicast addresses are not, nor
    are those of a cloud's metadata, nor IPv6 addresses that stand for IPv4 ones, except NAT64's
    where they stand for a public one.
    """
    if address in _METADATA:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _SPECIAL_V4)
    if address in _NAT64:
        return is_public(IPv4Address(address.packed[-4:]))
    return address in _GLOBAL_UNICAST and not any(address in block for block in _SPECIAL_V6)


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
