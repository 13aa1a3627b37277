"""Loads the model as the settings ask for it, for the worker and for the measurement."""

import structlog

from koala.catalogue import ModelCard
from koala.lora import LoraFolder
from koala.settings import Settings
from worker.engine import ModelLoadError, ResidentPipeline, SpeedUps
from worker.engine.loading import device_of, dtype_of
from worker.residency import NothingFits, choose

log = structlog.get_logger()


class CannotLoad(Exception):
    """The model cannot be loaded; the message says why, in one line."""


def load(settings: Settings, card: ModelCard) -> ResidentPipeline:
    """The model of ``card``, on the device and in the number format that ``settings`` name.

    Raises:
        CannotLoad: It cannot be loaded.
    """
    try:
        loras = LoraFolder(settings.lora_dir)
    except ValueError as error:
        raise CannotLoad(f"KOALA_LORA_DIR: {error}") from None
    try:
        device = device_of(settings.device)
        residency = choose(settings, card, device, dtype_of(settings.dtype, device))
        loaded = ResidentPipeline.load(
            card.source,
            revision=card.revision,
            device=settings.device,
            dtype=settings.dtype,
            scheduler_overrides=card.scheduler_overrides,
            fp16_vae=card.fp16_vae,
            torch_threads=settings.torch_threads,
            preview_decoder=settings.preview_decoder,
            speed_ups=SpeedUps(
                channels_last=settings.channels_last,
                fuse_qkv=settings.fuse_qkv,
                compile=settings.compile,
                most_rows=settings.max_batch_rows,
            ),
            residency=residency,
            loras=loras,
        )
    except (ModelLoadError, NothingFits) as error:
        raise CannotLoad(" ".join(str(error).split())) from None
    if loaded.projection is None and loaded.tiny_decoder is None:
        log.warning(
            "this model has no previews: no latent-to-RGB map is known for its VAE",
            model=card.id,
            remedy="set KOALA_PREVIEW_DECODER, or fit a map by `python -m distill.fit_preview`",
        )
    return loaded
