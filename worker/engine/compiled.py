"""The U-Net through ``torch.compile``, its rows padded so that few shapes are compiled."""

import os
import shutil
import sys
import time
import warnings
from typing import Any, Final, Protocol

import structlog
import torch
import torch._dynamo
from torch._dynamo.exc import TorchDynamoException

log = structlog.get_logger()

# Buckets up to 2^15 rows; beyond torch's own limit of 8 it would refuse to compile more.
_MOST_VARIANTS: Final = 32
# torch leaves its functions without types.
_CONFIG: Final[Any] = torch._dynamo.config


class CompileError(Exception):
    """The U-Net cannot be compiled; the message is one line."""


class UNetCall(Protocol):
    """How the engine calls a ``UNet2DConditionModel``."""

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        /,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        return_dict: bool,
    ) -> tuple[torch.Tensor, ...]:
        """The predicted noise (rows, C, h, w), first of a tuple. ``return_dict`` is ``False``."""


class PaddedRows:
    """Calls a U-Net with 1, 2, 3, 4, 6, 8, 12, 16, 24, ... rows only, and cuts the result.

    The rows added repeat the last one. Rows never mix in a U-Net, so the others stay what they are.

    Args:
        unet: What to call.
        most_rows: Calls of up to so many rows are not padded past it; ``None`` for no cap.
    """

    def __init__(self, unet: UNetCall, most_rows: int | None = None) -> None:
        self._unet = unet
        self._most_rows = most_rows

    def bucket(self, rows: int) -> int:
        """The number of rows that a call of ``rows`` is padded to."""
        power = 1 << (rows - 1).bit_length()
        between = power * 3 // 4
        bucket = between if between >= rows else power
        if self._most_rows is not None and rows <= self._most_rows:
            return min(bucket, self._most_rows)
        return bucket

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        /,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        return_dict: bool,
    ) -> tuple[torch.Tensor, ...]:
        """As :class:`UNetCall` says."""
        rows = len(latents)
        missing = self.bucket(rows) - rows
        output = self._unet(
            _pad(latents, missing),
            _pad(timesteps, missing),
            encoder_hidden_states=_pad(encoder_hidden_states, missing),
            added_cond_kwargs={k: _pad(v, missing) for k, v in added_cond_kwargs.items()},
            return_dict=return_dict,
        )
        return tuple(part[:rows] for part in output)


def _pad(rows: torch.Tensor, missing: int) -> torch.Tensor:
    if not missing:
        return rows
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


class CompiledUNet:
    """A U-Net that is compiled for its native size, one bucket of rows after another.

    A bucket is compiled when it is first needed, which holds up everything for a while: each time
    is logged. Other sizes run uncompiled, because each would cost all these waits again; that is
    logged once per size.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        most_rows: As for :class:`PaddedRows`.
    """

    def __init__(self, unet: Any, most_rows: int | None = None) -> None:
        self._unet = unet
        self._compiled: UNetCall = torch.compile(unet, dynamic=False, fullgraph=True)
        self._padded = PaddedRows(self._call_bucket, most_rows)
        side = unet.config.sample_size
        self._native: tuple[int, ...] = (side, side) if isinstance(side, int) else tuple(side)
        self._other_sizes: set[tuple[int, ...]] = set()
        # Whether the bucket was compiled; a bucket not tried yet is not in it.
        self._buckets: dict[int, bool] = {}

    @torch.inference_mode()
    def try_out(self, tokens: int, pooled_width: int) -> None:
        """Compile the smallest useful bucket, that of one image with guidance.

        Raises:
            CompileError: There is no compiler, or it does not work.
        """
        if self._unet.device.type == "cpu":
            # Else it would be missed only after most of the work is done.
            _check_compiler()
        like = {"device": self._unet.device, "dtype": self._unet.dtype}
        rows = self._padded.bucket(2)
        try:
            self._compile(
                rows,
                torch.zeros(rows, self._unet.config.in_channels, *self._native, **like),
                torch.zeros(rows, device=self._unet.device),
                encoder_hidden_states=torch.zeros(
                    rows, tokens, self._unet.config.cross_attention_dim, **like
                ),
                added_cond_kwargs={
                    "text_embeds": torch.zeros(rows, pooled_width, **like),
                    "time_ids": torch.zeros(rows, 6, **like),
                },
                return_dict=False,
            )
        except TorchDynamoException as error:
            raise CompileError(_first_line(error)) from error

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        /,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        return_dict: bool,
    ) -> tuple[torch.Tensor, ...]:
        """As :class:`UNetCall` says."""
        size = tuple(latents.shape[2:])
        call: UNetCall = self._padded
        if size != self._native:
            call = self._unet
            if size not in self._other_sizes:
                self._other_sizes.add(size)
                log.info("size runs uncompiled", latents=size, compiled=self._native)
        return call(
            latents,
            # The U-Net makes them fp32 itself; other dtypes would each be compiled for.
            timesteps.float(),
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs=added_cond_kwargs,
            return_dict=return_dict,
        )

    def _call_bucket(self, latents: torch.Tensor, /, *args: Any, **kwargs: Any) -> Any:
        rows = len(latents)
        if rows not in self._buckets:
            try:
                return self._compile(rows, latents, *args, **kwargs)
            except TorchDynamoException as error:
                # It worked when the worker started, so serving slower beats failing requests.
                self._buckets[rows] = False
                log.error("bucket runs uncompiled", rows=rows, error=_first_line(error))
        call = self._compiled if self._buckets[rows] else self._unet
        return call(latents, *args, **kwargs)

    def _compile(self, rows: int, /, *args: Any, **kwargs: Any) -> Any:
        log.info("compiling the U-Net", rows=rows, latents=self._native)
        start = time.perf_counter()
        with _CONFIG.patch(recompile_limit=_MOST_VARIANTS), warnings.catch_warnings():
            # diffusers compares versions in there; nothing for a service's log.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
            output = self._compiled(*args, **kwargs)
        self._buckets[rows] = True
        log.info("compiled the U-Net", rows=rows, seconds=round(time.perf_counter() - start, 1))
        return output


def _check_compiler() -> None:
    # By torch's own variable and default.
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise CompileError(f"there is no C++ compiler {name!r} (CXX)")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
