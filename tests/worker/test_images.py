"""Images carry what they were made from, and Pillow finds it again."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from worker.images import DIGITAL_SOURCE_TYPE, ImageMetadata, encode_image, read_metadata

FORMATS = ["png", "jpeg", "webp"]

METADATA = ImageMetadata(
    prompt="a koala on a blue background",
    negative_prompt="red",
    seed=7,
    steps=10,
    guidance_scale=3.5,
    scheduler="Euler",
    model="koala-demo",
    software="koala-serve 0.1.0",
    width=64,
    height=48,
    created=datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=2))),
)

HARD_PROMPTS = [
    "ein Käuzchen, ☃, コアラ, 🐨",
    "<b>a & b</b> ]]> \"double\" 'single' &amp; {braces}",
    "first line\nsecond line\n\tthird",
    "Steps: 99, Seed: 1, CFG scale: 2",
    "",
]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Smooth colours with some noise."""
    y, x = np.mgrid[0:48, 0:64]
    smooth = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1)
    noise = np.random.default_rng(0).integers(0, 8, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def opened(data: bytes) -> Image.Image:
    """The image that Pillow makes of ``data``."""
    found = Image.open(BytesIO(data))
    found.load()
    return found


def xmp_of(data: bytes) -> dict[str, str]:
    """Texts of the XMP packet, by the local name of their element."""
    packet = opened(data).info["xmp"]
    root = ElementTree.fromstring(re.sub(rb"<\?xpacket.*?\?>", b"", packet))
    return {
        element.tag.rsplit("}", 1)[-1]: element.text or ""
        for element in root.iter()
        if not len(element)
    }


def test_a_png_gives_the_pixels_back(image: Image.Image) -> None:
    found = opened(encode_image(image, "png", 0, METADATA))
    assert found.format == "PNG"
    assert found.tobytes() == image.tobytes()


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_compression_is_quality(output_format: Any, image: Image.Image) -> None:
    files = [encode_image(image, output_format, c, METADATA) for c in (0, 50, 100)]
    assert {opened(data).format for data in files} == {output_format.upper()}
    assert sorted(files, key=len) == files
    errors = [
        np.abs(np.asarray(opened(data), np.int16) - np.asarray(image, np.int16)).mean()
        for data in files
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 3


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_parameters_are_those_of_automatic1111(output_format: Any, image: Image.Image) -> None:
    found = read_metadata(encode_image(image, output_format, 90, METADATA))
    assert found["parameters"] == (
        "a koala on a blue background\n"
        "Negative prompt: red\n"
        "Steps: 10, Sampler: Euler, CFG scale: 3.5, Seed: 7, Size: 64x48, Model: koala-demo, "
        "Version: koala-serve 0.1.0"
    )
    assert found["software"] == "koala-serve 0.1.0"


def test_png_readers_find_them_as_texts(image: Image.Image) -> None:
    info = opened(encode_image(image, "png", 100, METADATA)).info
    assert info["parameters"] == METADATA.parameters
    assert info["Software"] == METADATA.software


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_exif_readers_find_them_as_user_comment(output_format: Any, image: Image.Image) -> None:
    exif = opened(encode_image(image, output_format, 90, METADATA)).getexif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    comment = details[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\x00"
    assert comment[8:].decode("utf-16-be") == METADATA.parameters
    assert exif[ExifTags.Base.Software] == METADATA.software
    assert details[ExifTags.Base.DateTimeOriginal] == "2026:05:04 03:02:01"
    assert details[ExifTags.Base.OffsetTimeOriginal] == "+02:00"


@pytest.mark.parametrize("output_format", FORMATS)
def test_xmp_declares_the_image_as_made_by_a_model(output_format: Any, image: Image.Image) -> None:
    found = xmp_of(encode_image(image, output_format, 90, METADATA))
    assert found["DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert found["li"] == METADATA.prompt
    assert found["CreatorTool"] == METADATA.software
    assert found["CreateDate"] == "2026-05-04T03:02:01+02:00"


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", HARD_PROMPTS)
def test_any_prompt_survives(output_format: Any, prompt: str, image: Image.Image) -> None:
    metadata = replace(METADATA, prompt=prompt, negative_prompt=prompt)
    data = encode_image(image, output_format, 90, metadata)
    assert read_metadata(data)["parameters"] == metadata.parameters
    assert metadata.parameters.startswith(f"{prompt}\n")
    assert xmp_of(data)["li"] == prompt


@pytest.mark.parametrize("output_format", FORMATS)
def test_characters_that_no_file_can_hold_are_replaced(
    output_format: Any, image: Image.Image
) -> None:
    metadata = replace(METADATA, prompt="a\x00b\x1bc\ud800d\uffff")
    data = encode_image(image, output_format, 90, metadata)
    expected = "a\ufffdb\ufffdc\ufffdd\ufffd"
    assert read_metadata(data)["parameters"].startswith(expected)
    assert xmp_of(data)["li"] == expected


@pytest.mark.parametrize("character", ["a", "&", "ä", "🐨"])
def test_very_long_prompts_are_cut_in_a_jpeg_only(character: str, image: Image.Image) -> None:
    metadata = replace(METADATA, prompt=character * 32_000, negative_prompt=character * 32_000)
    for output_format in ("png", "webp"):
        data = encode_image(image, output_format, 90, metadata)
        assert read_metadata(data)["parameters"] == metadata.parameters
        assert xmp_of(data)["li"] == metadata.prompt
    data = encode_image(image, "jpeg", 90, metadata)
    short = replace(METADATA, prompt=character * 7_500, negative_prompt=character * 7_500)
    assert read_metadata(data)["parameters"] == short.parameters
    assert xmp_of(data)["li"] == short.prompt


def test_fields_that_would_break_the_line_are_quoted() -> None:
    metadata = replace(METADATA, model='a, b: "c"', scheduler="SomeScheduler")
    last = metadata.parameters.splitlines()[-1]
    assert f"Model: {json.dumps(metadata.model)}, Version" in last
    assert "Sampler: SomeScheduler, " in last


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    for negative_prompt in (None, ""):
        parameters = replace(METADATA, negative_prompt=negative_prompt).parameters
        assert "Negative" not in parameters
        assert len(parameters.splitlines()) == 2


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(METADATA, created=datetime(2026, 1, 1))
    assert replace(METADATA, created=datetime(2026, 1, 1, tzinfo=UTC)).xmp


def test_an_image_without_metadata_reads_as_nothing(image: Image.Image) -> None:
    for output_format in FORMATS:
        buffer = BytesIO()
        image.save(buffer, format=output_format)
        assert read_metadata(buffer.getvalue()) == {}
