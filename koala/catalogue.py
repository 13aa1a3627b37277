"""The models that are known by name, and what a request to each may ask for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from koala.errors import ModelNotFound
from koala.spec import Quality

# A link to models/demo in the repository, a folder in a wheel.
DEMO_FOLDER: Final = (Path(__file__).parent / "data" / "demo").resolve()

_TRAILING: Final[Mapping[str, Any]] = {"timestep_spacing": "trailing"}


class HubSource(BaseModel):
    """A repository of the hub, and the commit of it that is meant; ``None``: the newest."""

    model_config = ConfigDict(frozen=True)

    repo: str
    revision: str | None = None


class ModelCard(BaseModel):
    """What a model can do and what it does by default.

    Sides and pixels are in image pixels. ``quality_steps`` maps OpenAI's ``quality`` to a number
    of denoising steps; ``scheduler_overrides`` replace entries of the checkpoint's own scheduler
    config. ``unet`` is a key of ``koala.architecture.UNETS``; ``fp16_vae`` takes the place of a VAE
    that overflows in fp16. ``license`` is in words; ``download_bytes`` is what the weights of
    model and ``fp16_vae`` take, from parameters counted. ``None``: not known.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    revision: str | None = None
    description: str
    owned_by: str
    native_side: int = 1024
    side_multiple: int = 8
    min_side: int = 256
    max_side: int = 2048
    max_pixels: int = 1536 * 1536
    steps: int = 25
    max_steps: int = 150
    guidance_scale: float = 7.5
    max_guidance_scale: float = 30.0
    quality_steps: dict[Quality, int]
    scheduler_overrides: dict[str, Any] = {}
    license: str | None = None
    unet: str | None = None
    fp16_vae: HubSource | None = None
    download_bytes: int | None = None

    def size_error(self, width: int, height: int) -> str | None:
        """Why this model cannot draw ``width`` by ``height`` pixels; ``None`` where it can."""
        if width % self.side_multiple or height % self.side_multiple:
            return f"both sides must be multiples of {self.side_multiple}"
        if not all(self.min_side <= side <= self.max_side for side in (width, height)):
            return f"both sides must be between {self.min_side} and {self.max_side}"
        if width * height > self.max_pixels:
            return f"width times height must be at most {self.max_pixels}"
        return None


# SDXL's VAE, changed by its author's finetuning so that fp16 can hold its activations. MIT.
_FP16_VAE: Final = HubSource(
    repo="madebyollin/sdxl-vae-fp16-fix", revision="207b116dae70ace3637169f1ddd2434b91b3a8cd"
)
# As LICENSE.md of the authors' repository has it.
_ETRI: Final[dict[str, Any]] = {
    "owned_by": "etri-vilab",
    "license": "CreativeML Open RAIL++-M, not for commercial use; that is licensed by ETRI",
    "scheduler_overrides": _TRAILING,
    "fp16_vae": _FP16_VAE,
}
_700M: Final[dict[str, Any]] = {"unet": "koala-700m", "download_bytes": 3_703_000_000}
_1B: Final[dict[str, Any]] = {"unet": "koala-1b", "download_bytes": 4_460_000_000}
_LIGHTNING: Final[dict[str, Any]] = {
    **_ETRI,
    "steps": 10,
    "guidance_scale": 3.5,
    "quality_steps": {"low": 6, "medium": 10, "high": 16, "xhigh": 20, "max": 30},
}
_TURBO: Final[dict[str, Any]] = {
    **_LIGHTNING,
    "native_side": 512,
    "max_side": 1024,
    "max_pixels": 768 * 768,
}
_BASE: Final[dict[str, Any]] = {
    "steps": 25,
    "guidance_scale": 7.5,
    "quality_steps": {"low": 15, "medium": 25, "high": 35, "xhigh": 50, "max": 75},
}

CATALOGUE: Final[tuple[ModelCard, ...]] = (
    ModelCard(
        id="koala-demo",
        source=str(DEMO_FOLDER),
        description="A miniature of KOALA-700M that draws emoji scenes on a CPU.",
        owned_by="koala-serve",
        license="Apache-2.0",
        native_side=64,
        side_multiple=16,
        min_side=48,
        max_side=128,
        max_pixels=128 * 128,
        steps=10,
        guidance_scale=3.5,
        quality_steps={"low": 6, "medium": 10, "high": 16, "xhigh": 20, "max": 30},
        scheduler_overrides=dict(_TRAILING),
    ),
    ModelCard(
        id="koala-lightning-700m",
        source="etri-vilab/koala-lightning-700m",
        description="KOALA-Lightning with the 783 M U-Net: 1024 px in 10 steps.",
        **_LIGHTNING,
        **_700M,
    ),
    ModelCard(
        id="koala-lightning-1b",
        source="etri-vilab/koala-lightning-1b",
        description="KOALA-Lightning with the 1,161 M U-Net: 1024 px in 10 steps.",
        **_LIGHTNING,
        **_1B,
    ),
    ModelCard(
        id="koala-turbo-700m",
        source="etri-vilab/koala-turbo-700m",
        description="KOALA-Turbo with the 783 M U-Net: 512 px in 10 steps.",
        **_TURBO,
        **_700M,
    ),
    ModelCard(
        id="koala-turbo-1b",
        source="etri-vilab/koala-turbo-1b",
        description="KOALA-Turbo with the 1,161 M U-Net: 512 px in 10 steps.",
        **_TURBO,
        **_1B,
    ),
    ModelCard(
        id="koala-700m",
        source="etri-vilab/koala-700m",
        description="KOALA base with the 783 M U-Net: 1024 px in 25 steps.",
        **_ETRI | _BASE,
        **_700M,
    ),
    ModelCard(
        id="koala-1b",
        source="etri-vilab/koala-1b",
        description="KOALA base with the 1,161 M U-Net: 1024 px in 25 steps.",
        **_ETRI | _BASE,
        **_1B,
    ),
    ModelCard(
        id="sdxl",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        description="SDXL base, which KOALA was distilled from: 1024 px in 25 steps.",
        owned_by="stabilityai",
        license="CreativeML Open RAIL++-M",
        unet="sdxl",
        fp16_vae=_FP16_VAE,
        download_bytes=7_273_000_000,
        **_BASE,
    ),
)


def resolve(model: str, revision: str | None = None) -> ModelCard:
    """The card for ``model``: a catalogue id, a catalogued hub id, a diffusers folder, a hub id.

    A folder's sizes come from its own config files; an unknown hub id is taken for SDXL-sized.

    Raises:
        ModelNotFound: ``model`` is neither known nor a diffusers folder nor of a hub id's form.
    """
    for card in CATALOGUE:
        if model in (card.id, card.source):
            return card.model_copy(update={"revision": revision or card.revision})
    folder = Path(model).expanduser()
    if folder.is_dir():
        if folder.resolve() == DEMO_FOLDER:
            return resolve("koala-demo", revision)
        return _card_of_folder(folder.resolve())
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return ModelCard(
            id=model.rsplit("/", 1)[1],
            source=model,
            revision=revision,
            description="An SDXL-shaped checkpoint from the hub.",
            owned_by=model.split("/", 1)[0],
            **_BASE,
        )
    known = ", ".join(card.id for card in CATALOGUE)
    raise ModelNotFound(
        f"There is no model {model!r}: it is neither a folder nor a hub id nor one of {known}.",
        param="model",
    )


def _card_of_folder(folder: Path) -> ModelCard:
    unet = _read_config(folder, "unet")
    vae = _read_config(folder, "vae")
    scale = 2 ** (len(vae.get("block_out_channels", [0, 0, 0, 0])) - 1)
    multiple = scale * 2 ** (len(unet.get("block_out_channels", [0, 0, 0])) - 1)
    native = int(unet.get("sample_size", 128)) * scale
    return ModelCard(
        id=folder.name,
        source=str(folder),
        description="A local SDXL-shaped checkpoint.",
        native_side=native,
        # SDXL itself accepts any multiple of its VAE's factor; so small a U-Net does not.
        side_multiple=8 if native >= 512 else multiple,
        min_side=max(multiple, native // 4 // multiple * multiple),
        max_side=native * 2,
        max_pixels=native * native * 9 // 4,
        owned_by="local",
        **_BASE,
    )


def _read_config(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelNotFound(
            f"{folder} is not a diffusers folder: it has no {part}/config.json.", param="model"
        ) from None
    except json.JSONDecodeError as error:
        raise ModelNotFound(f"{path} is not valid JSON: {error}.", param="model") from None
    return config
