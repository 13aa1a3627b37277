"""Which files of a diffusers repository or folder a worker needs, and whether they are whole.

The same rules choose what to download and check what is there. Weights are safetensors only, for
pickles run code when they are loaded; of two number formats the fp16 variant is enough.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from koala.tensor_file import TensorFileError, read_header

PARTS_WITH_WEIGHTS: Final = ("unet", "vae", "text_encoder", "text_encoder_2")
INDEX: Final = "model_index.json"

_TOKENIZERS: Final = ("tokenizer", "tokenizer_2")
_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
_FP16: Final = re.compile(r"\.fp16[.-]")
_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})")
# What diffusers and transformers look for; files beside them, such as a VAE for other programs,
# are no weights of the part.
_STEMS: Final = ("diffusion_pytorch_model", "model")


class CheckpointError(Exception):
    """A checkpoint lacks what a worker needs, or has it broken; the message is one line."""


def pipeline_files(names: Collection[str], model: str) -> list[str]:
    """What a worker needs of an SDXL-shaped pipeline.

    Args:
        names: All files, relative to the model's top.
        model: What messages call it.

    Raises:
        CheckpointError: Something is missing, or there are only pickles of it.
    """
    _require(INDEX, names, model)
    _require("scheduler/scheduler_config.json", names, model)
    for part in PARTS_WITH_WEIGHTS:
        _require(f"{part}/config.json", names, model)
    for part in _TOKENIZERS:
        if f"{part}/tokenizer.json" not in names:
            _require(f"{part}/vocab.json", names, model)
            _require(f"{part}/merges.txt", names, model)
    folders = (*PARTS_WITH_WEIGHTS, *_TOKENIZERS, "scheduler")
    small = [
        name for name in names if _folder(name) in folders and name.endswith((".json", ".txt"))
    ]
    weights = [name for part in PARTS_WITH_WEIGHTS for name in weight_files(names, part, model)]
    return sorted({INDEX, *small, *weights})


def vae_files(names: Collection[str], model: str) -> list[str]:
    """What a worker needs of a repository that is a VAE alone.

    Raises:
        CheckpointError: Something is missing, or there are only pickles of it.
    """
    _require("config.json", names, model)
    return ["config.json", *weight_files(names, "", model)]


def weight_files(names: Collection[str], part: str, model: str) -> list[str]:
    """The safetensors of one part: its fp16 variant if there is one, all shards of it.

    Args:
        names: All files, relative to the model's top.
        part: The part's folder; empty: the top.
        model: What messages call it.

    Raises:
        CheckpointError: There are none, or not all shards.
    """
    where = f"in {part}/" if part else "at its top"
    inside = [name for name in names if _folder(name) == part]
    tensors = [
        name
        for name in inside
        if name.endswith(".safetensors") and re.split(r"[.-]", name.rpartition("/")[2])[0] in _STEMS
    ]
    variant = [name for name in tensors if is_fp16_variant(name)]
    chosen = variant or tensors
    if not chosen:
        pickles = sorted(name for name in inside if name.endswith(_PICKLES))
        if pickles:
            raise CheckpointError(
                f"{model} has only pickled weights {where} ({pickles[0]}): loading a pickle runs "
                "the code in it, so safetensors are needed"
            )
        raise CheckpointError(f"{model} has no safetensors weights {where}")
    return sorted(_all_shards(chosen, where, model))


def is_fp16_variant(name: str) -> bool:
    """Whether a file of weights is of the fp16 variant, by its name."""
    return _FP16.search(name) is not None


def check_folder(folder: Path, model: str) -> None:
    """Check that a diffusers folder has what a worker needs, each weight file as long as it says.

    Only headers are read.

    Raises:
        CheckpointError: Something is missing, pickled, truncated or no safetensors.
    """
    for name in pipeline_files(files_of(folder), model):
        if name.endswith(".safetensors"):
            check_weights(folder / name, f"{model} has a broken {name}")


def check_weights(path: Path, complaint: str) -> None:
    """Check that a safetensors file is as long as its header says.

    Args:
        path: The file.
        complaint: What the message begins with.

    Raises:
        CheckpointError: It is not, or its header cannot be read.
    """
    try:
        with path.open("rb") as file:
            read_header(file)
    except TensorFileError as error:
        raise CheckpointError(f"{complaint}: {error}") from None


def files_of(folder: Path) -> list[str]:
    """The files of a folder, relative to it, down to one folder deep."""
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _all_shards(names: list[str], where: str, model: str) -> list[str]:
    """``names``, or of sharded weights all shards; a lone file goes before shards."""
    shards = {name: match for name in names if (match := _SHARD.search(name))}
    whole = [name for name in names if name not in shards]
    if whole:
        return whole
    total = int(next(iter(shards.values()))[2])
    missing = set(range(1, total + 1)) - {int(match[1]) for match in shards.values()}
    if missing:
        raise CheckpointError(
            f"{model} lacks shard {min(missing)} of {total} of its weights {where}"
        )
    return names


def _require(name: str, names: Collection[str], model: str) -> None:
    if name not in names:
        raise CheckpointError(f"{model} is not a diffusers folder: it has no {name}")


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
