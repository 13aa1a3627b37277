"""Which layer a key of a LoRA file is for: kohya's names, diffusers' and PEFT's."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from diffusers.loaders import lora_conversion_utils

Part: TypeAlias = Literal["unet", "text_encoder", "text_encoder_2"]
Role: TypeAlias = Literal["down", "up", "alpha"]

# diffusers leaves its functions without types.
_map_blocks: Final[Any] = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers

_KOHYA_PARTS: Final[dict[str, Part]] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_KOHYA_ROLES: Final[dict[str, Role]] = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
}
# kohya names the layers of SDXL as Stability AI's own code does; what diffusers does not translate.
_SGM_LAYERS: Final = (
    ("input_blocks_0_0", "conv_in"),
    ("input_blocks_", "down_blocks_"),
    ("middle_block_", "mid_block_"),
    ("output_blocks_", "up_blocks_"),
    ("downsamplers_0_op", "downsamplers_0_conv"),
    ("in_layers_2", "conv1"),
    ("out_layers_3", "conv2"),
    ("emb_layers_1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
    ("time_embed_0", "time_embedding_linear_1"),
    ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"),
    ("label_emb_0_2", "add_embedding_linear_2"),
)
_DIFFUSERS: Final = re.compile(r"(?P<part>unet|text_encoder|text_encoder_2)\.(?P<rest>.+)")
_ROLES: Final[dict[str, Role]] = {"lora_A": "down", "lora_B": "up", "down": "down", "up": "up"}
_PEFT: Final = re.compile(
    r"(?P<layer>.+?)\.(?:lora_linear_layer\.|lora\.)?(?P<role>lora_A|lora_B|down|up)\.weight"
)
_PROCESSOR: Final = re.compile(
    r"(?P<block>.+)\.processor\.(?P<layer>to_[qkv]|to_out)_lora\.(?P<role>down|up)\.weight"
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a tensor of a LoRA is: one of the three of a layer, by its path in the part."""

    part: Part
    layer: str
    role: Role


class Names:
    """Finds the layers that keys name.

    Args:
        layers: The paths of the layers of each part that can have a LoRA.
        unet_config: diffusers' config of the U-Net.
    """

    def __init__(self, layers: Mapping[Part, Iterable[str]], unet_config: Any) -> None:
        self._unet_config = unet_config
        self._paths: dict[tuple[Part, str], str] = {}
        self._kohya: dict[tuple[Part, str], str] = {}
        for part, paths in layers.items():
            for path in paths:
                # transformers had this prefix in all text encoders, and now has it in some.
                short = path.removeprefix("text_model.")
                for name in {path, short, f"text_model.{short}"}:
                    self._paths[part, name] = path
                    self._kohya[part, name.replace(".", "_")] = path

    def places(self, keys: Iterable[str]) -> dict[str, Place | None]:
        """The place of each key; ``None`` for one that fits no layer here.

        Raises:
            ValueError: The keys begin like those of SDXL's blocks and do not go on like them.
        """
        given = list(keys)
        if not all(key.startswith(tuple(_KOHYA_PARTS)) for key in given):
            return {key: self._diffusers_place(key) for key in given}
        try:
            renamed = _map_blocks({key: key for key in given}, self._unet_config)
        except (IndexError, KeyError, ValueError):
            raise ValueError("it names blocks as no SDXL U-Net does") from None
        found = {original: self._kohya_place(key) for key, original in renamed.items()}
        # Keys that diffusers dropped, because the same file names its blocks in two ways.
        return dict.fromkeys(given) | found

    def _kohya_place(self, key: str) -> Place | None:
        name, _, kind = key.partition(".")
        role = _KOHYA_ROLES.get(kind)
        prefix = next(prefix for prefix in _KOHYA_PARTS if name.startswith(prefix))
        part, layer = _KOHYA_PARTS[prefix], name.removeprefix(prefix)
        path = self._kohya.get((part, layer))
        if path is None and part == "unet":
            path = self._kohya.get((part, _from_sgm(layer)))
        return None if role is None or path is None else Place(part, path, role)

    def _diffusers_place(self, key: str) -> Place | None:
        whole = _DIFFUSERS.fullmatch(key)
        if whole is None:
            return None
        part: Part = whole["part"]  # type: ignore[assignment]
        if found := _PROCESSOR.fullmatch(whole["rest"]):
            layer = "to_out.0" if found["layer"] == "to_out" else found["layer"]
            name = f"{found['block']}.{layer}"
        elif found := _PEFT.fullmatch(whole["rest"]):
            name = found["layer"]
        else:
            return None
        path = self._paths.get((part, name))
        return None if path is None else Place(part, path, _ROLES[found["role"]])


def _from_sgm(layer: str) -> str:
    if layer == "out_2":
        return "conv_out"
    for theirs, ours in _SGM_LAYERS:
        layer = layer.replace(theirs, ours)
    return layer
