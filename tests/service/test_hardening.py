"""What browsers, proxies and attackers meet: headers, origins, bodies, paths."""

import base64
import gzip
import hashlib
import json
import re
import socket
from pathlib import Path

import httpx
import pytest

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, picture, serving, wait_until
from tests.service.test_run import alive, process
from tests.support import free_port

GENERATIONS = "/v1/images/generations"
PAGE = "https://page.example"


def raw(served: Served, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to bytes that no HTTP client would send."""
    host, port = served.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/healthz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/nothing", 404),
        ("PUT", "/v1/jobs", 405),
        ("POST", GENERATIONS, 415),
    ],
)
def test_every_answer_tells_browsers_to_be_careful(
    api: Served, method: str, path: str, status: int
) -> None:
    response = api.http.request(method, path)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "access-control-allow-origin" not in response.headers


def test_an_unexpected_error_has_the_headers_too(served: Served, worker: FakeWorker) -> None:
    job_id = f"job_{'0' * 32}"
    worker.redis.hset(worker.keys.job(job_id), mapping={"status": "nonsense"})
    response = served.http.get(f"/v1/jobs/{job_id}")
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"


def test_pages_elsewhere_may_show_an_image(served: Served) -> None:
    name = f"{'0a' * 16}-0.png"
    served.gateway.store.put(name, picture("png"))
    response = served.http.get(f"/v1/images/{name}")
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"


def test_the_docs_page_is_allowed_this_servers_files_and_no_others(api: Served) -> None:
    response = api.http.get("/docs")
    page, policy = response.text, response.headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [source] = re.findall(r'<script src="([^"]+)"', page)
    [style] = re.findall(r'<link[^>]*rel="stylesheet" href="([^"]+)"', page)
    assert directives["script-src"].split() == ["'self'", f"'sha256-{digest}'"]
    assert directives["style-src"] == "'self'"
    assert directives["connect-src"] == "'self'"
    assert "//" not in policy
    assert "url: 'openapi.json'" in script
    [icon] = re.findall(r'<link[^>]*rel="shortcut icon" href="([^"]+)"', page)
    for part in (source, style, icon):
        assert "//" not in part
        assert api.http.get(f"/{part}").status_code == 200


def test_a_browser_that_has_a_part_of_the_docs_page_is_told_so(api: Served) -> None:
    first = api.http.get("/docs/swagger-ui.css")
    assert first.headers["cache-control"] == "no-cache"
    again = api.http.get("/docs/swagger-ui.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.http.head("/docs/swagger-ui.css").headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2fcore.py", "%2e%2e%2fcore.py", ""])
def test_nothing_else_can_be_had_below_the_docs_page(api: Served, name: str) -> None:
    response = api.http.get(f"/docs/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_pages_elsewhere_may_not_call_the_api_unless_they_are_named(api: Served) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    response = api.http.options(GENERATIONS, headers=asked)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


def test_a_named_origin_may_call_the_api_and_read_what_it_needs(settings: Settings) -> None:
    named = settings.model_copy(update={"cors_origins": f"{PAGE}, https://other.example"})
    with serving(named) as served:
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,prefer",
        }
        response = served.http.options(GENERATIONS, headers=asked)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in response.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in response.headers

        stranger = served.http.options(
            GENERATIONS, headers=asked | {"Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in stranger.headers

        failed = served.http.post(GENERATIONS, json={}, headers={"Origin": PAGE})
        assert failed.status_code == 400
        assert failed.headers["access-control-allow-origin"] == PAGE
        exposed = failed.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-request-id", "x-koala-job-id", "location", "retry-after"} <= set(exposed)


def test_an_unexpected_error_can_be_read_by_a_named_origin(
    settings: Settings, worker: FakeWorker
) -> None:
    job_id = f"job_{'0' * 32}"
    worker.redis.hset(worker.keys.job(job_id), mapping={"status": "nonsense"})
    with serving(settings.model_copy(update={"cors_origins": PAGE})) as served:
        response = served.http.get(f"/v1/jobs/{job_id}", headers={"Origin": PAGE})
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity"])
def test_a_compressed_body_is_refused_by_name(api: Served, encoding: str) -> None:
    response = api.http.post(
        GENERATIONS,
        content=gzip.compress(json.dumps({"prompt": "a" * 1000}).encode()),
        headers={"Content-Type": "application/json", "Content-Encoding": encoding},
    )
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"
    assert encoding.lower() in response.json()["error"]["message"]
    assert response.headers["accept-encoding"] == "identity"


def test_a_body_that_says_it_is_not_compressed_is_read(api: Served) -> None:
    headers = {"Content-Encoding": "identity", "Prefer": "respond-async"}
    assert api.http.post(GENERATIONS, json={"prompt": "a"}, headers=headers).status_code == 202


@pytest.mark.parametrize("folder", ["/v1/images/", "/v1/jobs/"])
@pytest.mark.parametrize(
    "name",
    [
        b"..",
        b"../../../etc/passwd",
        b"..%2f..%2f..%2fetc%2fpasswd",
        b"%2e%2e%2f%2e%2e%2fsecret.png",
        b"..%5c..%5csecret.png",
        b"..%252fsecret.png",
        b"/etc/passwd",
        b"%2fetc%2fpasswd",
        b"%00",
        b"secret.png%00.png",
        b"%c0%ae%c0%ae%2fsecret.png",
        b"%e2%80%ae%ef%bc%8e%ef%bc%8esecret.png",
        b"%ff%fe",
        b"%0d%0aX-Injected:%201",
        b"file:///etc/passwd",
        b"." * 4000,
    ],
)
def test_no_path_leads_out_of_where_it_should(served: Served, folder: str, name: bytes) -> None:
    (served.settings.data_dir / "secret.png").write_bytes(b"secret")
    request = (
        b"GET "
        + folder.encode()
        + name
        + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    status, headers, body = raw(served, request)
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert "x-injected" not in headers
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
    assert b"root:" not in body


def test_a_head_that_never_ends_is_cut_off_and_the_gateway_goes_on(tmp_path: Path) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    with process(data_dir=tmp_path, port=port):
        wait_until(lambda: alive(base_url))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            sent = 0
            try:
                while sent < 10_000_000:
                    connection.sendall(b"X-Filler: " + b"a" * 1000 + b"\r\n")
                    sent += 1012
                answer = connection.recv(65_536)
            except ConnectionError:
                answer = b""
        assert sent < 10_000_000
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        assert httpx.get(f"{base_url}/healthz").is_success
