"""A tiny decoder (TAESD) for previews: sharper than the linear map, cheaper than the VAE."""

import math
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderTiny
from torch.nn.functional import avg_pool2d

from worker.engine.loading import ModelLoadError

# Longest side of a preview in pixels: each is a message to those who watch.
_LONGEST: Final = 512
# diffusers leaves these functions without types.
_Tiny: Final[Any] = AutoencoderTiny


class TinyDecoder:
    """diffusers' ``AutoencoderTiny``, of which only the decoder is kept.

    Args:
        model: It, already on its device.
    """

    def __init__(self, model: Any) -> None:
        del model.encoder
        self._model = model.eval()

    @classmethod
    def load(
        cls, folder: Path, channels: int, device: torch.device, dtype: torch.dtype
    ) -> "TinyDecoder":
        """Load a local diffusers folder, safetensors only.

        Args:
            folder: With ``config.json`` and the weights.
            channels: Channels of the latents that it has to decode.
            device: Where it computes.
            dtype: In which format.

        Raises:
            ModelLoadError: It cannot be loaded, or is for other latents.
        """
        folder = folder.expanduser()
        if not folder.is_dir():
            raise _Refusal(f"there is no folder {folder}")
        try:
            config = _Tiny.load_config(folder, local_files_only=True)
        # Broken files end in errors of json, safetensors, torch: no common base.
        except Exception as error:
            raise _Refusal(f"{folder} is not a diffusers folder: {_one_line(error)}") from error
        kind = config.get("_class_name")
        if kind != AutoencoderTiny.__name__:
            # diffusers would fill in random weights.
            raise _Refusal(f"{folder} is no {AutoencoderTiny.__name__} but {kind}")
        own = config.get("latent_channels", 4)
        if own != channels:
            raise _Refusal(f"{folder} is for {own} latent channels, the model has {channels}")
        try:
            model = _Tiny.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
            return cls(model.to(device))
        except Exception as error:
            raise _Refusal(f"{folder} cannot be loaded: {_one_line(error)}") from error

    @property
    def parameter_bytes(self) -> int:
        """Bytes that its weights take on the device."""
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents (n, C, h, w) to pixels (n, 3, H, W), nominally in [-1, 1], shrunk.

        One after the other, for an image of native size takes much memory on its way.
        """
        return torch.cat([self._decode_one(each) for each in latents.chunk(len(latents))])

    def _decode_one(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(self._model.dtype) / self._model.config.scaling_factor
        pixels: torch.Tensor = self._model.decode(latents, return_dict=False)[0]
        return avg_pool2d(pixels, max(1, math.ceil(max(pixels.shape[2:]) / _LONGEST)))


class _Refusal(ModelLoadError):
    """Names the setting before the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"KOALA_PREVIEW_DECODER: {reason}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
