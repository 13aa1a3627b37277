"""A sample as the batcher knows it, with or without a state of its own yet."""

from dataclasses import dataclass

from worker.batching import Size
from worker.engine.lora import AppliedLora, LoraOrder
from worker.engine.request import SampleKey, SampleRequest
from worker.engine.sample import Sample


@dataclass(slots=True, eq=False)
class Entry:
    """A request, and the sample once it was begun.

    A sample that has to wait again keeps its latents and its scheduler's state, so that it goes on
    where it was.

    Args:
        request: What to draw.
        order: The LoRAs of the request, fetched before the batcher hears of it; ``None``: it has
            none.
        loras: They, once they are there.
        sample: The state.
    """

    request: SampleRequest
    order: LoraOrder | None = None
    loras: tuple[AppliedLora, ...] = ()
    sample: Sample | None = None

    @property
    def key(self) -> SampleKey:
        """The caller's name for it."""
        return self.request.key

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.request.size

    @property
    def rows(self) -> int:
        """Rows that it takes in a U-Net call."""
        return self.request.rows
