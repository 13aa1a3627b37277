"""The schedulers that a request can name: what each is in diffusers and in other tools.

Of those that users of other tools know, some are left out: LMS and DPM++ SDE need packages that are
not installed, PNDM and DPM2 a fail in the 10 steps that KOALA-Lightning is made for, DDPM draws
what Euler a draws, and TCD needs a checkpoint distilled for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import AfterValidator


@dataclass(frozen=True, slots=True)
class NamedScheduler:
    """A scheduler by the name that requests use.

    Args:
        name: Lower case, with underscores.
        label: What AUTOMATIC1111 writes as ``Sampler:`` into an image.
        class_name: The class in diffusers.
        overrides: What the name promises beyond the class: replaces entries of the checkpoint's
            own scheduler config, all others of which stay.
        aliases: What other tools call it beside ``label`` and ``class_name``, in the same form as
            ``name``.
        max_steps: Most denoising steps; ``None`` for no limit of its own.
        calls_per_step: How often it calls the U-Net in a step.
    """

    name: str
    label: str
    class_name: str
    overrides: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    max_steps: int | None = None
    calls_per_step: int = 1

    def steps_error(self, num_inference_steps: int) -> str | None:
        """Why it cannot draw in so many steps; ``None`` where it can."""
        if self.max_steps is None or num_inference_steps <= self.max_steps:
            return None
        return f"{self.name} draws in at most {self.max_steps} steps, not {num_inference_steps}"


# The spacing of noise levels is part of the name, so a checkpoint's own must not shine through.
_PLAIN: Final = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_KARRAS: Final = _PLAIN | {"use_karras_sigmas": True}
_2M: Final = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_2M_SDE: Final = _2M | {"algorithm_type": "sde-dpmsolver++"}

_ALL: Final = (
    NamedScheduler("euler", "Euler", "EulerDiscreteScheduler", _PLAIN),
    NamedScheduler(
        "euler_a", "Euler a", "EulerAncestralDiscreteScheduler", {}, ("euler_ancestral",)
    ),
    NamedScheduler("heun", "Heun", "HeunDiscreteScheduler", _PLAIN, calls_per_step=2),
    NamedScheduler("dpm2", "DPM2", "KDPM2DiscreteScheduler", _PLAIN, ("dpm_2",), calls_per_step=2),
    # The class clips to [-1, 1] unless told otherwise, which fits pixels and spoils latents.
    NamedScheduler("ddim", "DDIM", "DDIMScheduler", {"clip_sample": False}),
    NamedScheduler("unipc", "UniPC", "UniPCMultistepScheduler", _PLAIN, ("uni_pc",)),
    NamedScheduler(
        "deis",
        "DEIS",
        "DEISMultistepScheduler",
        _PLAIN | {"algorithm_type": "deis", "solver_type": "logrho"},
    ),
    NamedScheduler("dpm++_2m", "DPM++ 2M", "DPMSolverMultistepScheduler", _PLAIN | _2M, ("dpm++",)),
    NamedScheduler(
        "dpm++_2m_karras", "DPM++ 2M Karras", "DPMSolverMultistepScheduler", _KARRAS | _2M
    ),
    NamedScheduler("dpm++_2m_sde", "DPM++ 2M SDE", "DPMSolverMultistepScheduler", _PLAIN | _2M_SDE),
    NamedScheduler(
        "dpm++_2m_sde_karras",
        "DPM++ 2M SDE Karras",
        "DPMSolverMultistepScheduler",
        _KARRAS | _2M_SDE,
    ),
    # Its steps are a choice among these 50, those of a consistency model's distillation.
    NamedScheduler("lcm", "LCM", "LCMScheduler", {"original_inference_steps": 50}, max_steps=50),
)

SCHEDULERS: Final[Mapping[str, NamedScheduler]] = MappingProxyType({s.name: s for s in _ALL})


def _normal_form(text: str) -> str:
    form = text.strip().lower().replace(" ", "_").replace("-", "_")
    # ComfyUI's way to write it.
    return form.replace("dpmpp", "dpm++")


def _names() -> dict[str, str]:
    names: dict[str, str] = {}
    for scheduler in _ALL:
        others = (scheduler.label, scheduler.class_name, *scheduler.aliases)
        # A class that stands behind several names means the first of them, its plain form.
        for text in (scheduler.name, *others):
            names.setdefault(_normal_form(text), scheduler.name)
    return names


_BY_ANY_NAME: Final[Mapping[str, str]] = MappingProxyType(_names())


def canonical_name(text: str) -> str:
    """The name in ``SCHEDULERS`` of what ``text`` calls a scheduler in any of its spellings.

    diffusers' class names and the names in AUTOMATIC1111 and ComfyUI are understood, in any case.

    Raises:
        ValueError: There is no such scheduler here; the message lists those that are.
    """
    try:
        return _BY_ANY_NAME[_normal_form(text)]
    except KeyError:
        raise ValueError(f"must be one of {', '.join(SCHEDULERS)}") from None


SchedulerName = Annotated[str, AfterValidator(canonical_name)]
