"""Where a webhook may go, as far as that shows before anything is sent."""

from ipaddress import ip_address, ip_network

import pytest

from koala.errors import InvalidRequest
from koala.settings import Settings
from service.webhooks.addresses import is_public, literal
from service.webhooks.target import check_webhook_url
from tests.service.webhook_rig import SECRET


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.15.255.255",
        "172.32.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "2606:4700::1111",
        "64:ff9b::808:808",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "2620:4f:8000::1",
        "2001:200::1",
    ],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.10",
        "192.0.0.170",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::10.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a83f:8110",
        "64:ff9b:1::1",
        "64:ff9b:1::808:808",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:1::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:808:808::1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_all_other_addresses_are_not(address: str) -> None:
    assert not is_public(ip_address(address))


# IANA's registries as they are printed: what is not globally reachable, and what lies beside it.
SPECIAL = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.170/31 192.0.2.0/24 192.88.99.0/24 192.88.99.2/32 192.168.0.0/16
198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
::/128 ::1/128 ::/96 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23
2001::/32 2001:2::/48 2001:10::/28 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10
fec0::/10 ff00::/8
"""
# Blocks that are special without a line in the registry: what is not assigned to unicast.
UNASSIGNED = [ip_network(block) for block in ("::/3", "4000::/2", "8000::/1")]


@pytest.mark.parametrize("block", SPECIAL.split())
def test_a_special_block_is_refused_from_its_first_to_its_last_address(block: str) -> None:
    network = ip_network(block)
    assert not is_public(network[0])
    assert not is_public(network[-1])
    assert not is_public(network[network.num_addresses // 2])


@pytest.mark.parametrize("block", SPECIAL.split())
def test_an_address_beside_a_special_block_is_public_unless_it_is_in_another(block: str) -> None:
    network = ip_network(block)
    taken = [*map(ip_network, SPECIAL.split()), *UNASSIGNED]
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= number < 1 << network.max_prefixlen:
            beside = type(network[0])(number)
            assert is_public(beside) == (not any(beside in other for other in taken)), beside


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fe80::a9fe:a9fe",
    ],
)
def test_where_clouds_tell_credentials_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["168.63.129.15", "168.63.129.17"])
def test_what_lies_beside_a_clouds_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7F.0.0.1",
        "0177.0.0.1",
        "017700000001",
    ],
)
def test_every_spelling_that_resolvers_take_is_the_address(host: str) -> None:
    assert literal(host) == ip_address("127.0.0.1")


@pytest.mark.parametrize("host", ["koala.example", "localhost", "1.2.3.4.example", "0x7g", ""])
def test_a_name_is_no_address(host: str) -> None:
    assert literal(host) is None


def refusal(url: str, **settings: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_webhook_url(url, Settings.model_validate({"webhook_secret": SECRET} | settings))
    assert caught.value.param == "webhook_url"
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "https://"),
        ("koala.example/hook", "https://"),
        ("//koala.example/hook", "https://"),
        ("ftp://koala.example/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("javascript:alert(1)", "https://"),
        ("http:///hook", "host"),
        ("http://:80/hook", "host"),
        ("http://koala..example/", "host"),
        ("http://koala example/", "host"),
        ("http://%6c%6f%63alhost/", "host"),
        (f"http://{'k' * 64}.example/", "host"),
        (f"http://{'k.' * 127}example/", "host"),
        ("http://[fe80::1%25eth0]/", "host"),
        ("http://koala.example:0/", "port"),
        ("http://koala.example:99999/", "port"),
        ("http://koala.example:no/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://xn--/", "not a URL"),
        ("http://xn--a.example/", "not a URL"),
        ("http://\uff11\uff12\uff17.0.0.1/", "not a URL"),
        ("http://koala.example/\nHost: other", "not a URL"),
        ("https://user:word@koala.example/", "user name or password"),
        ("https://user@koala.example/", "user name or password"),
        ("https://koala.example/#part", "fragment"),
        ("https://koala.example/#", "fragment"),
    ],
)
def test_what_is_no_url_to_send_to_is_refused(url: str, says: str) -> None:
    assert says in refusal(url, webhook_allow_private=True)


PRIVATE = [
    "http://127.0.0.1/",
    "http://127.1:8000/hook",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://10.1.2.3/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://168.63.129.16/machine/?comp=goalstate",
    "http://192.88.99.1/",
    "http://[fd00:ec2::254]/",
    "http://[::ffff:808:808]/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://api.localhost:8000/",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_addresses_that_are_not_public_are_refused(url: str) -> None:
    assert "KOALA_WEBHOOK_ALLOW_PRIVATE" in refusal(url)


@pytest.mark.parametrize("url", PRIVATE)
def test_they_are_taken_where_the_setting_says_so(url: str) -> None:
    check_webhook_url(url, Settings(webhook_secret=SECRET, webhook_allow_private=True))


@pytest.mark.parametrize(
    "url",
    [
        "https://koala.example",
        "HTTPS://Koala.Example:8443/hook?token=a%20b",
        "https://bücher.example/hook",
        "http://koala_worker.internal./",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]:8080/",
    ],
)
def test_other_urls_are_taken(url: str) -> None:
    check_webhook_url(url, Settings(webhook_secret=SECRET))


def test_nothing_is_taken_without_a_secret_to_sign_with() -> None:
    assert "KOALA_WEBHOOK_SECRET" in refusal("https://koala.example/", webhook_secret=None)
