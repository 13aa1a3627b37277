"""``/``: a page for people who point their browser here."""

from html import escape
from string import Template

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from koala import __version__
from service.gateway import GatewayDep

router = APIRouter(include_in_schema=False)

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>koala-serve</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 4rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
pre { overflow-x: auto; padding: 1rem; border-radius: .5rem; background: #8882; }
footer { margin-top: 3rem; opacity: .7; }
</style>
</head>
<body>
<h1>koala-serve</h1>
<p>Turns a prompt into an image with <b>$model</b>. $description</p>
<pre>curl $base/v1/images/generations \\
  -H 'Content-Type: application/json'$key \\
  -d '{"prompt": "a koala on a blue background"}'</pre>
<p>The answer has the image's URL. The <code>openai</code> client works too, with
<code>$base/v1</code> as its <code>base_url</code>.</p>
<ul>
<li><a href="docs">API reference</a></li>
<li><a href="v1/models">Models</a></li>
<li><a href="v1/jobs">Jobs</a></li>
<li><a href="readyz">Ready?</a> &middot; <a href="metrics">Metrics</a></li>
</ul>
<footer>Version $version</footer>
</body>
</html>
""")


@router.head("/")
@router.get("/")
async def home(request: Request, gateway: GatewayDep) -> Response:
    """What runs here, and how to use it."""
    page = _PAGE.substitute(
        model=escape(gateway.card.id),
        description=escape(gateway.card.description),
        base=escape(gateway.base_url(request)),
        key=" -H 'Authorization: Bearer YOUR_KEY'" if gateway.keyring else "",
        version=escape(__version__),
    )
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})
