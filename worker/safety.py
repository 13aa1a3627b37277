"""Says which images are not fit to be shown: an image classifier, on the CPU.

The device's memory is for drawing, and the check runs on the threads that encode images, so the
engine never waits for it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL.Image import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from koala.spec import Moderation

# diffusers and transformers leave these functions without types.
_Checker: Final[Any] = StableDiffusionSafetyChecker
_Processor: Final[Any] = AutoImageProcessor
_Classifier: Final[Any] = AutoModelForImageClassification

_UNSAFE_LABELS: Final = ("nsfw", "unsafe")
_SAFEST: Final[dict[str, Any]] = {"local_files_only": True, "trust_remote_code": False}

# The probability of the unsafe label above which an image is withheld.
_PROBABILITIES: Final[Mapping[Moderation, float]] = {"auto": 0.5, "low": 0.85}
# By how much an image has to be closer to one of the checker's concepts than its threshold says:
# for `auto` as diffusers decides.
_MARGINS: Final[Mapping[Moderation, float]] = {"auto": 0.0, "low": 0.02}
# What diffusers adds where an image is close to one of the concepts that want special care.
_SPECIAL_CARE: Final = 0.01


class SafetyCheckerError(Exception):
    """A folder holds no safety checker; the message is one line for the person who chose it."""


class SafetyChecker:
    """A classifier and from which score on it withholds an image. Can be used by many threads.

    Args:
        processor: transformers' image processor of the classifier.
        score: The score of pixels (1, C, h, w): the higher, the less fit to be shown.
        limits: The highest score that passes.
    """

    def __init__(
        self,
        processor: Any,
        score: Callable[[torch.Tensor], float],
        limits: Mapping[Moderation, float],
    ) -> None:
        self._processor = processor
        self._score = score
        self._limits = limits

    @classmethod
    def load(cls, folder: Path) -> "SafetyChecker":
        """Load diffusers' safety checker, or an image classifier with an unsafe label.

        Raises:
            SafetyCheckerError: The folder holds neither; the message says what is wrong.
        """
        config = _read_config(folder)
        is_diffusers = _Checker.__name__ in (config.get("architectures") or ())
        kind = _Checker if is_diffusers else _Classifier
        options = _SAFEST if kind is _Classifier else {"local_files_only": True}
        try:
            # The variant on Pillow: the other one needs torchvision.
            processor = _Processor.from_pretrained(folder, backend="pil", **_SAFEST)
            model, report = kind.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **options
            )
        # Broken files end in errors of json, safetensors, transformers, torch: no common base.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SafetyCheckerError(f"{folder} cannot be loaded: {reason}") from error
        if missing := report["missing_keys"]:
            # They would be random numbers.
            names = ", ".join(sorted(missing)[:3])
            raise SafetyCheckerError(f"{folder} lacks {len(missing)} weights: {names}, ...")
        model.eval()
        if is_diffusers:
            return cls(processor, lambda pixels: concept_score(model, pixels), _MARGINS)
        label = _unsafe_label(model.config.id2label, folder)
        return cls(processor, lambda pixels: _probability(model, pixels, label), _PROBABILITIES)

    def refuses(self, image: Image, moderation: Moderation) -> bool:
        """Whether ``image`` (RGB) has to be withheld; a score that is no number withholds it."""
        with torch.inference_mode():
            pixels = self._processor(images=image, return_tensors="pt").pixel_values
            return not self._score(pixels) <= self._limits[moderation]


def concept_score(model: Any, pixels: torch.Tensor) -> float:
    """By how much pixels (1, C, h, w) exceed the nearest threshold of diffusers' checker."""
    embeds = model.visual_projection(model.vision_model(pixels)[1])
    special = _cosines(embeds, model.special_care_embeds) - model.special_care_embeds_weights
    concepts = _cosines(embeds, model.concept_embeds) - model.concept_embeds_weights
    # diffusers compares three digits.
    care = _SPECIAL_CARE if bool((special.round(decimals=3) > 0).any()) else 0.0
    return float((concepts + care).round(decimals=3).max())


def _cosines(embeds: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    normalize = torch.nn.functional.normalize
    return normalize(embeds) @ normalize(others).T


def _probability(model: Any, pixels: torch.Tensor, label: int) -> float:
    logits = model(pixel_values=pixels).logits
    if model.config.problem_type == "multi_label_classification":
        return float(logits.sigmoid()[0, label])
    return float(logits.softmax(-1)[0, label])


def _unsafe_label(names: Mapping[int, str], folder: Path) -> int:
    for number, name in names.items():
        if name.lower() in _UNSAFE_LABELS:
            return int(number)
    raise SafetyCheckerError(
        f"{folder} has no label nsfw or unsafe, but {', '.join(sorted(names.values()))[:200]}"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise SafetyCheckerError(f"{folder}/config.json cannot be read: {error.strerror}") from None
    except ValueError:
        raise SafetyCheckerError(f"{folder}/config.json is not JSON") from None
    if not isinstance(config, dict):
        raise SafetyCheckerError(f"{folder}/config.json holds no object")
    return config
