"""LitServe with dynamic batching. ``python -m bench.litserve_server PORT THREADS BATCH``."""

from typing import Any, Final

import litserve
import typer

from bench.painter import Body, Painter, Painting
from bench.workloads import Request

# Long enough to gather what arrives together, short beside a drawing of 0.1 s and more. (At 0
# LitServe's loop spins on its queue and takes a core from the model.)
_BATCH_TIMEOUT: Final = 0.01


class PaintingAPI(litserve.LitAPI):
    """LitServe's hooks around the painter.

    Args:
        threads: CPU threads of torch.
        batch: Most requests of one batch.
    """

    def __init__(self, threads: int, batch: int) -> None:
        super().__init__(
            max_batch_size=batch,
            batch_timeout=_BATCH_TIMEOUT,
            api_path="/v1/images/generations",
        )
        self._threads = threads

    def setup(self, device: str) -> None:
        """Load the model, in LitServe's own worker process."""
        self._painter = Painter(self._threads)

    def decode_request(self, request: dict[str, Any]) -> Request:
        """One request of a batch."""
        return Body.model_validate(request).request()

    def batch(self, inputs: list[Request]) -> list[Request]:
        """The batch as the painter takes it."""
        return inputs

    def predict(self, inputs: list[Request]) -> list[Painting]:
        """Draw the batch."""
        return self._painter.paint(inputs)

    def unbatch(self, output: list[Painting]) -> list[Painting]:
        """The batch's single answers."""
        return output

    def encode_response(self, output: Painting) -> dict[str, Any]:
        """One answer."""
        return output.body()


def main(port: int, threads: int, batch: int) -> None:
    """Serve until a signal."""
    server = litserve.LitServer(
        PaintingAPI(threads, batch), accelerator="cpu", workers_per_device=1, timeout=False
    )
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    typer.run(main)
