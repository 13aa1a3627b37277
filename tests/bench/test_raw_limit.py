"""The raw loop does the work it is asked for, at full batches."""

from itertools import islice

import pytest

from bench.raw_limit import Batches, RawLoop
from bench.results import CurvePoint
from bench.workloads import Workload, requests
from koala.catalogue import DEMO_FOLDER


@pytest.fixture(scope="module")
def loop() -> RawLoop:
    return RawLoop(DEMO_FOLDER)


def test_the_loop_puts_the_rows_of_a_workload_through_the_model_in_full_batches(
    loop: RawLoop,
) -> None:
    asked = list(islice(requests(Workload.MIXED, 0), 5))
    unet, vae = loop._unet, loop._vae
    rows, decoded = [], []
    hooks = [
        unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))),
        vae.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[0]))),
    ]
    needed = sum(request.unet_rows for request in asked)

    seconds, work = loop.run(len(asked), needed, Batches(unet_rows=16, images=2))
    for hook in hooks:
        hook.remove()

    assert sum(rows) == needed
    assert rows == [16] * (needed // 16) + ([needed % 16] if needed % 16 else [])
    assert decoded == [2, 2, 1]
    assert (work.unet_calls, work.decode_calls) == (rows, decoded)
    assert seconds > 0


def test_the_best_batches_take_least_per_row_and_per_image() -> None:
    curve = [
        CurvePoint(batch=1, unet_row_ms=11.0, decode_image_ms=7.0),
        CurvePoint(batch=16, unet_row_ms=3.5, decode_image_ms=3.8),
        CurvePoint(batch=32, unet_row_ms=3.1, decode_image_ms=3.9),
    ]

    assert Batches.best(curve) == Batches(unet_rows=32, images=16)
