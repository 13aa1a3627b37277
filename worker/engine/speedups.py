"""Optional speed-ups of a loaded model: memory format, fused projections, torch.compile."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
import torch
from diffusers.models.attention_processor import Attention

from worker.engine.compiled import CompiledUNet, CompileError, UNetCall
from worker.engine.device import computes_bfloat16, is_cuda
from worker.engine.loading import ModelLoadError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SpeedUps:
    """What to do to a model so that it runs faster; nothing unless told.

    Args:
        channels_last: Keep the weights of convolutions channels last.
        fuse_qkv: One projection where the U-Net's attention has two or three. LoRAs no longer fit
            such a U-Net.
        compile: Compile the U-Net for its native size.
        most_rows: The operator's cap on the rows of a U-Net call, which padding must not exceed.
    """

    channels_last: bool = False
    fuse_qkv: bool = False
    compile: bool = False
    most_rows: int | None = None


NO_SPEED_UPS: Final = SpeedUps()


def speed_up(pipeline: Any, speed_ups: SpeedUps) -> UNetCall:
    """Change the models of diffusers' ``pipeline`` in place; what to call instead of its U-Net.

    Raises:
        ModelLoadError: A speed-up does not work here; the message names its setting.
    """
    unet, vae = pipeline.unet, pipeline.vae
    _warn_of_slow_dtype(unet.device, unet.dtype)
    if speed_ups.channels_last:
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    if speed_ups.fuse_qkv:
        _fuse_qkv(unet)
    if not speed_ups.compile:
        call: UNetCall = unet
        return call
    compiled = CompiledUNet(unet, speed_ups.most_rows)
    try:
        compiled.try_out(
            tokens=pipeline.tokenizer.model_max_length,
            pooled_width=pipeline.text_encoder_2.config.projection_dim,
        )
    except CompileError as error:
        raise ModelLoadError(f"KOALA_COMPILE: the U-Net cannot be compiled: {error}") from error
    return compiled


def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether this CPU computes in ``dtype`` rather than emulating it."""
    known: dict[torch.dtype, Callable[[], bool]] = {
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    }
    return dtype not in known or known[dtype]()


def _fuse_qkv(unet: Any) -> None:
    try:
        unet.fuse_qkv_projections()
    except ValueError as error:
        raise ModelLoadError(f"KOALA_FUSE_QKV: {error}") from error
    for module in unet.modules():
        if isinstance(module, Attention):
            # diffusers keeps what it fused, for unfusing, and so keeps these weights twice.
            fused = ("to_k", "to_v") if module.is_cross_attention else ("to_q", "to_k", "to_v")
            for name in fused:
                delattr(module, name)


def _warn_of_slow_dtype(device: torch.device, dtype: torch.dtype) -> None:
    supported = True
    if device.type == "cpu":
        supported = cpu_computes(dtype)
    elif is_cuda(device) and dtype == torch.bfloat16:
        supported = computes_bfloat16()
    if not supported:
        name = str(dtype).removeprefix("torch.")
        log.warning("KOALA_DTYPE is slow here: the device only emulates it", dtype=name)
