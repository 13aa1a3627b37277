"""Images in S3: the store itself, and two workers of a service that have nothing else in common."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import httpx
import pytest
from PIL import Image

from koala.connections import connect_async
from koala.errors import ImageNotFound
from koala.expiry import ExpiringImages
from koala.keys import Keys
from koala.settings import Settings
from koala.store import ImageStore
from service.retention import Retention
from tests.support import free_port, wait_until_ready

NAME = "0" * 32 + "-0.png"
FAST = {"retries": {"max_attempts": 0}}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server with an empty bucket ``koala``; where the environment says."""
    url = f"http://127.0.0.1:{free_port()}"
    ours = {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--port", url.rsplit(":", 1)[1]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ours.items():
                patch.setenv(name, value)
            _make_bucket(url)
            yield url
    finally:
        server.terminate()
        server.wait(10)


def _make_bucket(url: str) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            httpx.put(f"{url}/koala").raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "no S3 server"
            time.sleep(0.1)


@dataclass(frozen=True)
class Service:
    """A running service whose images are in S3."""

    base_url: str
    settings: Settings


@contextmanager
def running(folder: Path, **changes: str) -> Iterator[Service]:
    """``koala up`` with its images in the bucket."""
    port = str(free_port())
    env = {
        "KOALA_DATA_DIR": str(folder),
        "KOALA_PORT": port,
        "KOALA_IMAGE_STORE": "s3://koala/images",
        "KOALA_TORCH_THREADS": "1",
        "KOALA_MAX_BATCH_ROWS": "4",
        **changes,
    }
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "koala", "up"],
            env=os.environ | env,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield Service(
            f"http://127.0.0.1:{port}",
            Settings(data_dir=folder, image_store=env["KOALA_IMAGE_STORE"]),
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        print(log.read_text())


def test_what_was_put_is_got_until_it_is_deleted(s3: str) -> None:
    store = ImageStore("s3://koala/store")
    store.put(NAME, b"one")
    store.put(NAME, b"two")
    assert ImageStore("s3://koala/store").get(NAME) == b"two"
    store.delete(NAME)
    store.delete(NAME)
    with pytest.raises(ImageNotFound, match=NAME):
        store.get(NAME)


def test_images_are_listed_and_nothing_else_is(s3: str) -> None:
    store = ImageStore("s3://koala/list")
    names = [f"{digit * 32}-0.png" for digit in "abc"]
    assert store.names() == []
    for name in names:
        store.put(name, b"data")
    httpx.put(f"{s3}/koala/list/notes.txt", content=b"data").raise_for_status()
    assert sorted(store.names()) == names


def test_an_image_that_others_store_is_there_although_the_store_was_listed_before(s3: str) -> None:
    store = ImageStore("s3://koala/listed")
    store.put(NAME, b"data")
    assert store.names() == [NAME]
    late = f"{'f' * 32}-0.png"
    httpx.put(f"{s3}/koala/listed/{late}", content=b"data").raise_for_status()
    assert store.get(late) == b"data"


def test_a_bucket_that_is_not_there_is_an_os_error(s3: str) -> None:
    with pytest.raises(OSError, match="bucket"):
        ImageStore("s3://no-such-bucket/images").put(NAME, b"data")


def test_a_server_that_is_not_there_is_an_os_error(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    # fsspec keeps its clients, and theirs is the address that was in the environment.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": away, "config_kwargs": FAST})
    with pytest.raises(OSError, match="connect"):
        ImageStore("s3://koala/images").put(NAME, b"data")


def test_two_workers_store_there_the_gateway_serves_and_what_expires_is_removed(
    s3: str, tmp_path: Path
) -> None:
    with running(tmp_path, KOALA_WORKERS="2") as service:
        answers = [
            httpx.post(
                f"{service.base_url}/v1/images/generations",
                json={"prompt": "a koala", "n": 4, "seed": seed},
                timeout=300,
            )
            for seed in (1, 2)
        ]
        urls = [image["url"] for answer in answers for image in answer.json()["data"]]
        assert len(urls) == 8
        for url in urls:
            with Image.open(io.BytesIO(httpx.get(url).content)) as image:
                assert image.size == (64, 64)
        assert not (tmp_path / "images").exists()

        asyncio.run(_expire_all(service.settings))

        assert {httpx.get(url).status_code for url in urls} == {404}
        listing = httpx.get(f"{s3}/koala", params={"list-type": 2, "prefix": "images/"})
        assert "<KeyCount>0</KeyCount>" in listing.text


async def _expire_all(settings: Settings) -> None:
    connection = connect_async(settings)
    keys = Keys(settings.queue)
    try:
        for member in await connection.zrange(keys.images, 0, -1):
            assert ExpiringImages.decode(member).names
            await connection.zadd(keys.images, {member: 1})
        store = ImageStore(settings.resolved_image_store)
        # The gateway may have swept just now, and would be left alone with it for a while.
        await connection.delete(f"{keys.images}:sweep")
        await Retention(connection, keys, store, settings).sweep()
    finally:
        await connection.aclose()
