"""Checks, encodes and stores finished images on threads of its own: the engine never waits."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

import structlog
from PIL.Image import Image

from koala.spec import ImageRef
from koala.store import ImageStore
from worker.flight import Flight, Outcome
from worker.images import ImageMetadata, encode_image
from worker.safety import SafetyChecker
from worker.store_watch import StoreWatch

log = structlog.get_logger()

_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one image: its reference, or why the job fails; withheld, it has neither."""

    flight: Flight
    index: int
    image: ImageRef | None = None
    failure: Outcome | None = None


class Gallery:
    """Takes images in and says later what became of them.

    Args:
        store: Where images go.
        describe: Builds the metadata that an image carries, from its flight, index and pixels.
        safety: Says which images are withheld; ``None``: none is.
        store_watch: Told of images that were not stored; ``None``: one of its own.
    """

    def __init__(
        self,
        store: ImageStore,
        describe: Callable[[Flight, int, Image], ImageMetadata],
        safety: SafetyChecker | None = None,
        store_watch: StoreWatch | None = None,
    ) -> None:
        self.safety = safety
        self.store_watch = store_watch or StoreWatch(store)
        self._store = store
        self._describe = describe
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="gallery")
        self._pending: dict[Future[ImageRef | None], tuple[Flight, int]] = {}

    def take(self, flight: Flight, index: int, image: Image) -> None:
        """Start to check, encode and store an image."""
        future = self._pool.submit(self._keep, flight, index, image)
        self._pending[future] = (flight, index)

    def collect(self, seconds: float = 0.0) -> Iterator[Stored]:
        """What is done by now; waits up to ``seconds`` for something to be done."""
        if seconds and self._pending:
            wait(self._pending, seconds, FIRST_COMPLETED)
        for future in [future for future in self._pending if future.done()]:
            flight, index = self._pending.pop(future)
            yield self._outcome(future, flight, index)

    def discard(self, flight: Flight) -> None:
        """Store no more images of a job that ended without them; those under way are removed.

        The sweep of images, which removes what was stored before, may have come by then.
        """
        for future in [each for each, (owner, _) in self._pending.items() if owner is flight]:
            del self._pending[future]
            if not future.cancel():
                future.add_done_callback(self._remove)

    def close(self) -> None:
        """Wait for what is being written, drop what is not begun."""
        self.store_watch.close()
        self._pool.shutdown(cancel_futures=True)
        self._pending.clear()

    def _keep(self, flight: Flight, index: int, image: Image) -> ImageRef | None:
        spec = flight.spec
        if self.safety is not None and self.safety.refuses(image, spec.moderation):
            return None
        metadata = self._describe(flight, index, image)
        data = encode_image(image, spec.output_format, spec.output_compression, metadata)
        name = spec.image_name(index)
        self._store.put(name, data)
        return ImageRef(name=name, seed=spec.image_seed(index), size_bytes=len(data))

    def _remove(self, future: Future[ImageRef | None]) -> None:
        image = None if future.exception() else future.result()
        if image is None:
            return
        try:
            self._store.delete(image.name)
        except OSError as error:
            log.warning("an image of a failed job stays", name=image.name, error=str(error))

    def _outcome(self, future: Future[ImageRef | None], flight: Flight, index: int) -> Stored:
        error = future.exception()
        if error is None:
            return Stored(flight, index, image=future.result())
        log.error("an image was not stored", job_id=flight.id, index=index, exc_info=error)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            self.store_watch.doubt(reason)
            failure = Outcome.failed("image_store_error", f"The image was not stored: {reason}.")
        else:
            message = f"The image was not checked or not encoded: {error}"
            failure = Outcome.failed("generation_failed", message)
        return Stored(flight, index, failure=failure)
