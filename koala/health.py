"""``python -m koala.health URL``: what a container's health check runs; images have no curl."""

import sys
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from koala.printable import printable

_PATIENCE_SECONDS = 4.0


def trouble(url: str) -> str | None:
    """Why ``url`` is not healthy, in one line; ``None`` where it answers with a 2xx."""
    try:
        # A proxy that the environment names is for elsewhere.
        with build_opener(ProxyHandler({})).open(url, timeout=_PATIENCE_SECONDS):
            return None
    except HTTPError as error:
        return f"{url}: {error.code} {error.read(500).decode(errors='replace').strip()}"
    except (OSError, HTTPException, ValueError) as error:
        return f"{url}: {error}"


def main(arguments: list[str]) -> int:
    """0 where the URL is healthy, 1 where it is not, 2 without a URL."""
    if len(arguments) != 1:
        print("usage: python -m koala.health URL", file=sys.stderr)
        return 2
    reason = trouble(arguments[0])
    if reason is not None:
        print(printable(reason), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
