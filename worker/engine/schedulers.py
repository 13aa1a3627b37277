"""A scheduler for every sample: the checkpoint's own, or one that the request names."""

import copy
import inspect
from typing import Any

import diffusers
import torch

from koala.schedulers import SCHEDULERS


class Schedulers:
    """Makes schedulers that share the noise levels which the checkpoint was trained with.

    Args:
        default: The checkpoint's own scheduler, in diffusers; it is never stepped.
        device: Where the timesteps go.
    """

    def __init__(self, default: Any, device: torch.device) -> None:
        self._default = default
        self._device = device
        self._named: dict[str, Any] = {}

    def new(self, num_inference_steps: int, name: str | None = None) -> Any:
        """A scheduler of its own for one sample, at the first of ``num_inference_steps`` steps.

        Args:
            num_inference_steps: Denoising steps.
            name: A key of ``koala.schedulers.SCHEDULERS``; ``None`` for the checkpoint's own.

        Raises:
            ValueError: There is no scheduler ``name``, the checkpoint does not go with it, or it
                cannot make a schedule of so many steps.
        """
        original = self._default if name is None else self._original(name)
        if name is not None and (reason := SCHEDULERS[name].steps_error(num_inference_steps)):
            raise ValueError(f"the scheduler {reason}")
        # A copy takes a fifth of the time that from_config takes; the original is never stepped.
        scheduler = copy.deepcopy(original)
        scheduler.set_timesteps(num_inference_steps, device=self._device)
        if hasattr(scheduler, "set_begin_index"):
            # Spares the search for the first timestep, which on a GPU waits for the device.
            scheduler.set_begin_index(0)
        return scheduler

    def label(self, name: str | None) -> str:
        """What AUTOMATIC1111 calls it; where it knows no such thing, diffusers' class name."""
        if name is not None:
            return SCHEDULERS[name].label
        class_name, config = type(self._default).__name__, self._default.config
        for named in SCHEDULERS.values():
            promised = named.overrides.items()
            if named.class_name == class_name and promised <= config.items():
                return named.label
        return class_name

    def _original(self, name: str) -> Any:
        if name not in self._named:
            if name not in SCHEDULERS:
                raise ValueError(f"there is no scheduler {name!r}")
            if "beta_schedule" not in self._default.config:
                # EDM and flow matching: from_config would fall back to noise levels of its own.
                own = type(self._default).__name__
                raise ValueError(f"the model was made for {own} and does not go with {name}")
            named = SCHEDULERS[name]
            scheduler_class = getattr(diffusers, named.class_name)
            self._named[name] = scheduler_class.from_config(self._default.config, **named.overrides)
        return self._named[name]


def step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """The keyword arguments of ``step`` that only some schedulers take.

    Args:
        scheduler: Of the sample.
        generator: The sample's own, so that the noise which a stochastic scheduler adds depends on
            the seed and not on the company.
    """
    parameters = inspect.signature(scheduler.step).parameters
    # As diffusers' pipelines set them: an eta of 0 makes DDIM deterministic.
    arguments = {"generator": generator, "eta": 0.0}
    return {name: value for name, value in arguments.items() if name in parameters}
