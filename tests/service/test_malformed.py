"""A thousand malformed requests: each refused in order, none costs the gateway anything."""

import json
import socket
from collections import Counter
from itertools import islice

from tests.service import garbage
from tests.service.fakes import FakeWorker, Served

COUNT = 1000
SEED = 4


def exchange(served: Served, request: garbage.Garbage) -> bytes:
    """All that the gateway answers until it hangs up, or sends nothing more for a while."""
    # Who has not said all that was announced is waited for, and so is who may say more.
    patience = 0.3 if request.breaks_http or request.stays else 20.0
    port = int(served.base_url.rsplit(":", 1)[1])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        try:
            connection.sendall(request.encode())
            connection.settimeout(patience)
            while data := connection.recv(65_536):
                answer += data
        except TimeoutError:
            assert patience < 1, request.kind
        except (BrokenPipeError, ConnectionResetError):
            # It hung up on what it would not read to the end.
            pass
    return answer


def test_a_thousand_malformed_requests_are_refused_and_leave_no_trace(
    served: Served, worker: FakeWorker
) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    for request in islice(garbage.stream(SEED), COUNT):
        answer = exchange(served, request)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
        seen[(request.kind, status)] += 1
        context = (request.kind, request.body[:200], request.headers, answer[:500])
        if request.breaks_http and status in (0, 400, 431):
            continue
        # What was too large to be read may end in a reset that overtakes the answer.
        if request.kind.startswith("oversized") and status == 0:
            continue
        assert 400 <= status < 500, context
        # What follows a refused request on the same connection is refused in its turn.
        error = json.JSONDecoder().raw_decode(body.decode())[0]["error"]
        assert set(error) == {"message", "type", "param", "code"}, context
        assert error["type"] == "invalid_request_error", context
        assert error["message"], context
    assert {status for kind, status in seen if kind == "huge header"} & {400, 431}
    print(dict(seen))
    assert worker.waiting() == []
    assert worker.redis.zcard(worker.keys.index) == 0
    assert worker.redis.keys("rq:job:*") == []
    assert served.http.get("/healthz").is_success
    ok = served.http.post(
        "/v1/images/generations", json={"prompt": "a"}, headers={"Prefer": "respond-async"}
    )
    assert ok.status_code == 202
