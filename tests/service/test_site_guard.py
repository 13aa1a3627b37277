"""Hosts and origins: a page that a browser shows does not get at a gateway on the same machine."""

import json
from collections.abc import Iterator

import httpx
import pytest

from koala.settings import Settings
from tests.service.fakes import Served, serving
from tests.service.keyed import asking, bearer
from tests.service.test_hardening import raw

GENERATIONS = "/v1/images/generations"
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def named(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway that knows more names, and an origin that may call it."""
    settings = Settings(
        redis_url=valkey_server,
        data_dir=tmp_path_factory.mktemp("named"),
        queue="named",
        allowed_hosts="gpu-box, *.Lan.Example",
        public_url="https://koala.example/draw",
        cors_origins=PAGE,
    )
    with serving(settings) as served:
        yield served


def post(served: Served, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent |= {"Prefer": "respond-async"}
    return served.http.post(GENERATIONS, json={"prompt": "a koala"}, headers=sent)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


STRANGERS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "notlocalhost",
    "127.1",
    "0x7f000001",
]


@pytest.mark.parametrize("host", STRANGERS)
@pytest.mark.parametrize("path", ["/", "/v1/jobs", "/v1/admin/jobs", "/openapi.json", "/nothing"])
def test_a_name_that_was_rebound_to_this_machine_is_not_served(
    api: Served, host: str, path: str
) -> None:
    response = api.http.get(path, headers={"Host": host})
    assert error_of(response) == (421, "host_not_allowed")
    assert "KOALA_ALLOWED_HOSTS" in response.json()["error"]["message"]
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_rebound_page_cannot_draw_although_its_origin_is_its_host(api: Served) -> None:
    response = post(
        api, Host="evil.example", Origin="http://evil.example", Sec_Fetch_Site="same-origin"
    )
    assert error_of(response) == (421, "host_not_allowed")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "koala.localhost:1",
        "127.0.0.1:8000",
        "192.168.1.7",
        "[::1]",
        "[::1]:8000",
        "[fe80::1%25eth0]:8000",
        "127.0.0.1:",
    ],
)
def test_localhost_and_addresses_are_served(api: Served, host: str) -> None:
    assert api.http.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("host", ["gateway:8000", "10.1.2.3:8000", "evil.example", ""])
def test_probes_and_prometheus_may_use_any_name(api: Served, path: str, host: str) -> None:
    assert api.http.get(path, headers={"Host": host}).status_code in (200, 503)
    assert "host_not_allowed" not in api.http.get(path, headers={"Host": host}).text


@pytest.mark.parametrize("host", ["gpu-box:8000", "GPU-BOX.", "a.lan.example", "a.b.lan.example"])
def test_hosts_that_are_named_are_served(named: Served, host: str) -> None:
    assert named.http.get("/v1/jobs", headers={"Host": host}).status_code == 200


def test_the_host_of_the_public_url_is_served(named: Served) -> None:
    assert named.http.get("/v1/jobs", headers={"Host": "koala.example"}).status_code == 200


@pytest.mark.parametrize("host", ["lan.example", "gpu-box.evil.example", "evilan.example"])
def test_a_name_that_is_only_like_an_allowed_one_is_not_served(named: Served, host: str) -> None:
    response = named.http.get("/v1/jobs", headers={"Host": host})
    assert error_of(response) == (421, "host_not_allowed")


def test_a_star_serves_every_host(settings: Settings) -> None:
    with serving(settings.model_copy(update={"allowed_hosts": "*"})) as served:
        assert served.http.get("/v1/jobs", headers={"Host": "any.example"}).status_code == 200


def test_with_keys_every_host_is_served_for_a_page_does_not_have_one(settings: Settings) -> None:
    with asking(settings) as served:
        headers = {"Host": "koala.example"}
        assert served.http.get("/v1/jobs", headers=headers).status_code == 401
        assert served.http.get("/v1/jobs", headers=headers | bearer("alice")).status_code == 200
        # What is no host at all would end up in the URLs of images.
        malformed = {"Host": "a b"} | bearer("alice")
        assert error_of(served.http.get("/v1/jobs", headers=malformed)) == (400, "invalid_host")


def test_an_anonymous_gateway_that_is_open_to_the_network_checks_hosts_too(
    settings: Settings,
) -> None:
    with serving(settings.model_copy(update={"allow_anonymous": True})) as served:
        response = served.http.get("/v1/jobs", headers={"Host": "evil.example"})
        assert error_of(response) == (421, "host_not_allowed")


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a b",
        b"user@localhost",
        b"localhost:port",
        b"localhost:123456",
        b"http://localhost",
        b"localhost/path",
        b"localhost, localhost",
        b"[::1",
        b"::1",
        b"\xff",
        b"loc\xc3\xa4lhost",
    ],
)
def test_a_malformed_host_is_a_400(api: Served, host: bytes) -> None:
    request = b"GET /v1/jobs HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    status, _, body = raw(api, request)
    assert status == 400
    assert json.loads(body)["error"]["code"] == "invalid_host"


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: localhost\r\n"])
def test_a_host_that_is_missing_or_comes_twice_is_a_400(api: Served, hosts: bytes) -> None:
    status, _, _ = raw(api, b"GET /v1/jobs HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
    assert status == 400


def test_http_1_0_needs_no_host(api: Served) -> None:
    assert raw(api, b"GET /v1/jobs HTTP/1.0\r\n\r\n")[0] == 200


CROSS_SITE = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "https://evil.example"},
    # Another port of this machine is another origin.
    {"Sec_Fetch_Site": "same-site", "Origin": "http://localhost:3000"},
    {"Sec_Fetch_Site": "nonsense"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost:3000", "Host": "localhost:8000"},
    {"Origin": "http://localhost:8000", "Host": "localhost"},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_a_page_of_another_site_may_not_change_anything(
    api: Served, headers: dict[str, str]
) -> None:
    response = post(api, **headers)
    assert error_of(response) == (403, "cross_site_request")
    assert "KOALA_CORS_ORIGINS" in response.json()["error"]["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "FROB"])
@pytest.mark.parametrize("path", [f"/v1/jobs/job_{'0' * 32}/cancel", "/nothing", "/docs"])
def test_every_method_that_may_change_something_is_guarded_at_every_address(
    api: Served, method: str, path: str
) -> None:
    response = api.http.request(method, path, headers={"Sec-Fetch-Site": "cross-site"})
    assert error_of(response) == (403, "cross_site_request")


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data; boundary=x"])
def test_what_a_form_may_send_is_refused_before_it_is_read(api: Served, media_type: str) -> None:
    headers = {"Origin": "https://evil.example", "Content-Type": media_type}
    response = api.http.post(GENERATIONS, content=b"x" * 200_000, headers=headers)
    assert error_of(response) == (403, "cross_site_request")


def test_with_keys_the_same_rule_holds(settings: Settings) -> None:
    with asking(settings) as served:
        response = served.http.post(
            GENERATIONS, headers=bearer("alice") | {"Sec-Fetch-Site": "cross-site"}
        )
        assert error_of(response) == (403, "cross_site_request")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec_Fetch_Site": "same-origin", "Origin": "http://127.0.0.1:8000"},
        {"Sec_Fetch_Site": "none"},
        {"Origin": "http://localhost:8000", "Host": "localhost:8000"},
        {"Origin": "http://LOCALHOST", "Host": "localhost:80"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
        # Behind a proxy that speaks TLS and hands the Host header on.
        {"Origin": "https://localhost", "Host": "localhost"},
    ],
)
def test_pages_of_this_gateway_and_programs_pass(api: Served, headers: dict[str, str]) -> None:
    assert post(api, **headers).status_code == 202


def test_reading_is_left_to_the_same_origin_policy(api: Served) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    response = api.http.get("/v1/jobs", headers=headers)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origin", [PAGE, "https://PAGE.example:443", "https://koala.example"])
def test_origins_that_are_named_may_send_requests(named: Served, origin: str) -> None:
    response = post(named, Origin=origin, Sec_Fetch_Site="cross-site")
    assert response.status_code == 202


@pytest.mark.parametrize("origin", ["http://page.example", f"{PAGE}:8443", f"{PAGE}.evil.example"])
def test_an_origin_that_is_only_like_a_named_one_may_not(named: Served, origin: str) -> None:
    response = post(named, Origin=origin, Sec_Fetch_Site="cross-site")
    assert error_of(response) == (403, "cross_site_request")


def test_a_refusal_of_the_host_can_be_read_by_a_named_origin(named: Served) -> None:
    response = named.http.get("/v1/jobs", headers={"Host": "evil.example", "Origin": PAGE})
    assert error_of(response) == (421, "host_not_allowed")
    assert response.headers["access-control-allow-origin"] == PAGE


def test_where_all_origins_may_call_all_may_change(settings: Settings) -> None:
    with serving(settings.model_copy(update={"cors_origins": "*"})) as served:
        assert post(served, Origin="null", Sec_Fetch_Site="cross-site").status_code == 202
