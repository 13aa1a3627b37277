"""A hub of the tests' own: as much of its HTTP API as ``huggingface_hub`` uses for a download."""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "beef"


class TinyHub:
    """Serves repositories on loopback until closed.

    Args:
        repositories: Files by name, by repository id. All have one commit, the head of ``main``.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = {repo: dict(files) for repo, files in repositories.items()}
        self.gated: set[str] = set()
        # Files of which something else is sent than was announced.
        self.garbled: set[str] = set()
        # How many bytes of a file are sent before the connection breaks, once for each entry.
        self.cuts: dict[str, list[int]] = {}
        # Cleared: such a connection hangs until this is set, and breaks then.
        self.breaks = threading.Event()
        self.breaks.set()
        self.requests: list[tuple[str, str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def sent(self, name: str) -> list[str | None]:
        """The ``Range`` of each request for a file's content."""
        return [ranges for method, path, ranges in self.requests if (method, path) == ("GET", name)]

    def close(self) -> None:
        """Nobody answers any more."""
        self.breaks.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                path = unquote(urlsplit(self.path).path).lstrip("/")
                if path.startswith("api/models/"):
                    owner, name, *rest = path.removeprefix("api/models/").split("/")
                    self._api(f"{owner}/{name}", rest)
                elif "/resolve/" in path:
                    owner, name, _, _, file = path.split("/", 4)
                    hub.requests.append((self.command, file, self.headers.get("Range")))
                    self._file(f"{owner}/{name}", file)
                else:
                    self._refuse(404, "EntryNotFound")

            def _api(self, repo: str, rest: list[str]) -> None:
                if repo not in hub.repositories:
                    return self._refuse(404, "RepoNotFound")
                if rest[1:] and rest[1] not in ("main", COMMIT):
                    return self._refuse(404, "RevisionNotFound")
                files = hub.repositories[repo]
                if rest[:1] == ["tree"]:
                    found: object = [
                        {"type": "file", "path": name, "size": len(content), "oid": "0"}
                        for name, content in files.items()
                    ]
                else:
                    siblings = [{"rfilename": name} for name in files]
                    found = {"id": repo, "sha": COMMIT, "siblings": siblings}
                self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

            def _file(self, repo: str, name: str) -> None:
                if repo in hub.gated:
                    return self._refuse(403, "GatedRepo")
                content = hub.repositories[repo][name]
                if name in hub.garbled and self.command == "GET":
                    content = content[:-1] + b"?"
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(name, content)}"'}
                start = 0
                if asked := self.headers.get("Range"):
                    start = int(asked.removeprefix("bytes=").split("-")[0])
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self._send(206 if asked else 200, content[start:], headers, name)

            def _refuse(self, status: int, code: str) -> None:
                self._send(status, b"{}", {"X-Error-Code": code})

            def _send(
                self, status: int, body: bytes, headers: dict[str, str], name: str = ""
            ) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if cuts := hub.cuts.get(name):
                    self.wfile.write(body[: cuts.pop(0)])
                    self.wfile.flush()
                    hub.breaks.wait()
                    self.close_connection = True
                    return
                self.wfile.write(body)

        return Handler


def _etag(name: str, content: bytes) -> str:
    # The hub names large files by their SHA-256 and small ones by what git calls them.
    digest = hashlib.sha256 if name.endswith(".safetensors") else hashlib.sha1
    return digest(content).hexdigest()
