"""What the model alone can do on this machine: the raw loop, and the engine without a queue."""

import time
from typing import Final

import torch
from diffusers import StableDiffusionXLPipeline

from bench.load import REQUEST
from worker.engine import Engine, Finished, ResidentPipeline, SampleRequest

_SIDE: Final = 64


class RawLoop:
    """U-Net calls and VAE decodes at a fixed batch, with nothing around them.

    No scheduler, no guidance arithmetic, no noise: no server of this model can be faster at this
    batch size.

    Args:
        folder: A diffusers folder.
        images: Images per batch; guidance makes it twice as many rows.
    """

    def __init__(self, folder: str, images: int) -> None:
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
        self._unet, self._vae = pipeline.unet.eval(), pipeline.vae.eval()
        self._images = images
        rows, latent = 2 * images, _SIDE // pipeline.vae_scale_factor
        embeds, _, pooled, _ = pipeline.encode_prompt(str(REQUEST["prompt"]))
        self._latents = torch.randn(rows, self._unet.config.in_channels, latent, latent)
        self._embeds = embeds.expand(rows, -1, -1).contiguous()
        self._conditions = {
            "text_embeds": pooled.expand(rows, -1).contiguous(),
            "time_ids": torch.tensor([[_SIDE, _SIDE, 0, 0, _SIDE, _SIDE]] * rows),
        }

    @torch.inference_mode()
    def images_per_second(self, batches: int) -> float:
        """Images per second over ``batches`` batches."""
        steps = int(REQUEST["num_inference_steps"])
        start = time.perf_counter()
        for _ in range(batches):
            for step in range(steps):
                self._unet(
                    self._latents,
                    torch.full((len(self._latents),), 999 - step),
                    encoder_hidden_states=self._embeds,
                    added_cond_kwargs=self._conditions,
                    return_dict=False,
                )
            self._vae.decode(self._latents[: self._images], return_dict=False)
        return batches * self._images / (time.perf_counter() - start)


def engine_alone(pipeline: ResidentPipeline, images: int) -> list[float]:
    """Seconds that each of ``images`` single images takes in the engine, one after another."""
    engine = Engine(pipeline, max_rows=32)
    seconds = []
    for seed in range(images):
        start = time.perf_counter()
        engine.add(
            SampleRequest(
                key=str(seed),
                prompt=str(REQUEST["prompt"]),
                negative_prompt=None,
                width=_SIDE,
                height=_SIDE,
                num_inference_steps=int(REQUEST["num_inference_steps"]),
                guidance_scale=float(REQUEST["guidance_scale"]),
                seed=seed,
            )
        )
        while not any(isinstance(event, Finished) for event in engine.step()):
            pass
        seconds.append(time.perf_counter() - start)
    return seconds
