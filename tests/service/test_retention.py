"""Images go when their jobs do."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio

from koala.connections import connect, connect_async
from koala.expiry import ExpiringImages
from koala.keys import Keys
from koala.settings import Settings
from koala.spec import JobSpec
from koala.store import ImageStore
from service import retention as retention_module
from service.retention import Retention
from tests.service.fakes import picture
from tests.support import spec

# So long a job may be in flight, and an hour.
AGE = Settings().event_ttl + 3600


@pytest.fixture
def store(settings: Settings) -> ImageStore:
    return ImageStore(settings.resolved_image_store)


def sweeping(
    settings: Settings,
    use: Callable[[Retention, redis.asyncio.Redis], Awaitable[None]],
    pause: float = 0.01,
) -> None:
    async def main() -> None:
        connection = connect_async(settings)
        store = ImageStore(settings.resolved_image_store)
        try:
            retention = Retention(connection, Keys(settings.queue), store, settings, pause=pause)
            await use(retention, connection)
        finally:
            await connection.aclose()

    asyncio.run(main())


def store_images(store: ImageStore, job: JobSpec) -> list[str]:
    names = ExpiringImages.of(job).names
    for name in names:
        store.put(name, picture("png"))
    return names


def files(settings: Settings) -> list[str]:
    return sorted(os.listdir(settings.resolved_image_store))


def test_images_are_removed_when_their_time_has_come_and_not_before(
    settings: Settings, store: ImageStore
) -> None:
    old, new = spec(n=2), spec(n=3)
    store_images(store, old)
    kept = store_images(store, new)

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        now = int(time.time())
        entries = {
            ExpiringImages.of(old).encode(): now - 1,
            ExpiringImages.of(new).encode(): now + 60,
        }
        await connection.zadd(Keys("koala").images, entries)
        await retention.sweep()
        assert await connection.zcard(Keys("koala").images) == 1

    sweeping(settings, use)
    assert files(settings) == sorted(kept)


def test_of_two_gateways_one_sweeps(settings: Settings, store: ImageStore) -> None:
    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        await connection.set(f"{Keys('koala').images}:sweep", "another", px=60_000)
        await connection.zadd(Keys("koala").images, {ExpiringImages.of(spec()).encode(): 1})
        await retention.sweep()
        assert await connection.zcard(Keys("koala").images) == 1

    sweeping(settings, use)


def test_what_no_job_will_ever_tell_of_is_removed_and_nothing_else(
    settings: Settings, store: ImageStore
) -> None:
    # Files look as old as a wrong clock makes them.
    known, orphan, fresh = spec(), spec(), spec()
    [known_name], [orphan_name], [fresh_name] = (
        store_images(store, job) for job in (known, orphan, fresh)
    )
    folder = Path(settings.resolved_image_store)
    half = f".{orphan_name}.0123abcd"
    (folder / half).touch()
    (folder / "notes.txt").touch()
    for name in (known_name, orphan_name, fresh_name, half, "notes.txt"):
        os.utime(folder / name, (1, 1))

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        keys = Keys("koala")
        await connection.zadd(keys.images, {ExpiringImages.of(known).encode(): time.time() + 60})
        await retention.remove_orphans()
        assert len(files(settings)) == 5, "it goes by the times of files"
        # So far no job has told of two of them.
        await connection.zincrby(keys.orphans, -AGE, orphan_name)
        await connection.zincrby(keys.orphans, -AGE, half)
        await connection.zincrby(keys.orphans, 60 - AGE, fresh_name)
        await retention.remove_orphans()
        assert await connection.zrange(keys.orphans, 0, -1) == [fresh_name.encode()]

    sweeping(settings, use)
    assert files(settings) == sorted([known_name, fresh_name, "notes.txt"])


def test_an_image_whose_job_ends_after_all_is_no_orphan_any_more(
    settings: Settings, store: ImageStore
) -> None:
    slow = spec()
    names = store_images(store, slow)

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        keys = Keys("koala")
        await retention.remove_orphans()
        await connection.zincrby(keys.orphans, -AGE, names[0])
        await connection.zadd(keys.images, {ExpiringImages.of(slow).encode(): time.time() + 60})
        await retention.remove_orphans()
        assert await connection.exists(keys.orphans) == 0

    sweeping(settings, use)
    assert files(settings) == names


def test_of_very_many_orphans_a_part_is_noted_at_a_time(
    settings: Settings, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_MOST_ORPHANS", 3)
    monkeypatch.setattr(retention_module, "_PER_COMMAND", 2)
    for _ in range(5):
        store_images(store, spec())

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        keys = Keys("koala")
        for noted in (3, 2):
            await retention.remove_orphans()
            names = await connection.zrange(keys.orphans, 0, -1)
            assert len(names) == noted
            for name in names:
                await connection.zincrby(keys.orphans, -AGE, name)
            await retention.remove_orphans()
        assert await connection.exists(keys.orphans) == 0

    sweeping(settings, use)
    assert files(settings) == []


def test_a_store_that_is_not_there_yet_has_no_orphans(settings: Settings) -> None:
    async def use(retention: Retention, _: redis.asyncio.Redis) -> None:
        await retention.remove_orphans()

    sweeping(settings, use)
    assert not Path(settings.resolved_image_store).exists()


def test_a_sweep_that_goes_wrong_is_tried_again(
    settings: Settings, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    [name] = store_images(store, spec(images_id="0" * 32))
    troubles = [OSError(30, "Read-only file system"), RuntimeError("who knows")]
    delete = ImageStore.delete

    def fragile(self: ImageStore, name: str) -> None:
        if troubles:
            raise troubles.pop()
        delete(self, name)

    monkeypatch.setattr(ImageStore, "delete", fragile)

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        entry = ExpiringImages("0" * 32, 1, "png").encode()
        await connection.zadd(Keys("koala").images, {entry: 1})
        task = asyncio.create_task(retention.run())
        async with asyncio.timeout(120):
            while name in files(settings):
                await asyncio.sleep(0.01)
        task.cancel()

    sweeping(settings, use)
    assert troubles == []


def test_a_sweep_goes_on_until_nothing_is_due_past_what_cannot_be_removed(
    settings: Settings, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [spec() for _ in range(5000)]
    stuck = ExpiringImages.of(jobs[1234])
    removed: set[str] = set()
    sweeps = [OSError(5, "Input/output error")]

    def delete(self: ImageStore, name: str) -> None:
        if name in stuck.names and sweeps:
            raise sweeps.pop()
        removed.add(name)

    monkeypatch.setattr(ImageStore, "delete", delete)
    unreadable = b"\xff of another version"

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        key = Keys("koala").images
        entries = {ExpiringImages.of(job).encode(): 1 + i for i, job in enumerate(jobs)}
        await connection.zadd(key, entries | {unreadable: 0})

        await retention.sweep()

        assert len(removed) == 4999
        left = dict(await connection.zrange(key, 0, -1, withscores=True))
        assert set(left) == {stuck.encode().encode(), unreadable}
        # Both are put off, and the one that failed is tried again first.
        assert time.time() < left[stuck.encode().encode()] < left[unreadable]

        await connection.zadd(key, {stuck.encode(): 1})
        await connection.delete(f"{key}:sweep")
        await retention.sweep()
        assert stuck.names[0] in removed

    sweeping(settings, use, pause=60)


def test_a_sweep_whose_lock_is_anothers_stops(
    settings: Settings, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [spec() for _ in range(300)]
    lock = f"{Keys('koala').images}:sweep"
    thief = connect(settings)
    monkeypatch.setattr(ImageStore, "delete", lambda store, name: thief.set(lock, "another"))

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        key = Keys("koala").images
        await connection.zadd(key, {ExpiringImages.of(job).encode(): 1 for job in jobs})
        await retention.sweep()
        assert 0 < await connection.zcard(key) < 300

    sweeping(settings, use, pause=60)
    thief.close()


def test_files_of_an_entry_that_cannot_be_read_are_no_orphans(
    settings: Settings, store: ImageStore
) -> None:
    [name] = store_images(store, spec())
    os.utime(Path(settings.resolved_image_store) / name, (1, 1))

    async def use(retention: Retention, connection: redis.asyncio.Redis) -> None:
        entry = f"{name.partition('-')[0]} 1 avif and more"
        await connection.zadd(Keys("koala").images, {entry: time.time() + 60})
        await retention.remove_orphans()

    sweeping(settings, use)
    assert files(settings) == [name]
