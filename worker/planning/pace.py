"""Images a minute that a card makes of a batch, from the published latencies."""

from worker.batching import Size
from worker.simulation.published import STEPS, Profile


def images_per_minute(profile: Profile, size: Size, rows: int) -> float:
    """Guided images a minute, drawn and decoded again and again in calls of ``rows`` rows.

    Args:
        profile: A card and a model.
        size: Width and height in pixels.
        rows: At least 1; half as many images share a call.
    """
    images = rows / 2
    denoising = STEPS * profile.step_seconds(size, rows)
    return 60 * images / (denoising + images * profile.decode_seconds(size))
