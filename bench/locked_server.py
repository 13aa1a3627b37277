"""The plain way: FastAPI, one pipeline, a lock. ``python -m bench.locked_server PORT THREADS``."""

import asyncio
from typing import Any

import typer
import uvicorn
from anyio import to_thread
from fastapi import FastAPI

from bench.painter import Body, Painter


def create_app(painter: Painter) -> FastAPI:
    """An application that draws one request at a time, in the order of arrival."""
    app = FastAPI()
    lock = asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/images/generations")
    async def generate(body: Body) -> dict[str, Any]:
        async with lock:
            [painting] = await to_thread.run_sync(painter.paint, [body.request()])
        return painting.body()

    return app


def main(port: int, threads: int) -> None:
    """Serve until a signal."""
    uvicorn.run(create_app(Painter(threads)), port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    typer.run(main)
