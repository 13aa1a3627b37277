import json
from pathlib import Path

import pytest

from koala.architecture import UNETS
from koala.catalogue import CATALOGUE, DEMO_FOLDER, resolve
from koala.errors import ModelNotFound


def sdxl_folder(folder: Path, unet: dict[str, object], vae: dict[str, object]) -> Path:
    for part, config in (("unet", unet), ("vae", vae)):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_is_found_by_name_by_hub_id_and_by_folder() -> None:
    assert resolve("koala-lightning-700m").steps == 10
    assert resolve("etri-vilab/koala-lightning-700m").id == "koala-lightning-700m"
    assert resolve(str(DEMO_FOLDER)).id == "koala-demo"


def test_lightning_and_base_have_their_own_defaults() -> None:
    assert (resolve("koala-lightning-1b").steps, resolve("koala-1b").steps) == (10, 25)
    assert resolve("koala-lightning-1b").guidance_scale == 3.5
    for card in CATALOGUE:
        # The authors of KOALA sample from the last step on, those of SDXL do not.
        trailing = {"timestep_spacing": "trailing"} if card.id != "sdxl" else {}
        assert card.scheduler_overrides == trailing, card.id
        assert card.quality_steps["medium"] == card.steps, card.id


def test_turbo_draws_at_512_px() -> None:
    card = resolve("koala-turbo-700m")
    assert (card.native_side, card.steps, card.guidance_scale) == (512, 10, 3.5)
    assert card.size_error(512, 512) is None
    assert "between 256 and 1024" in str(card.size_error(1536, 512))


def test_every_model_has_a_licence_and_those_of_the_hub_a_size_and_a_vae_for_fp16() -> None:
    for card in CATALOGUE:
        assert card.license, card.id
        if card.id != "koala-demo":
            assert card.unet in UNETS, card.id
            assert card.fp16_vae is not None, card.id
            assert card.fp16_vae.revision, card.id


def test_a_revision_from_the_settings_wins() -> None:
    assert resolve("koala-lightning-700m", "01cf684").revision == "01cf684"


def test_an_unknown_hub_id_is_taken_for_sdxl_sized() -> None:
    card = resolve("someone/their-sdxl")
    assert (card.id, card.native_side, card.scheduler_overrides) == ("their-sdxl", 1024, {})


def test_a_folder_tells_its_sizes_by_its_configs(tmp_path: Path) -> None:
    unet = {"sample_size": 32, "block_out_channels": [32, 64]}
    card = resolve(str(sdxl_folder(tmp_path / "tiny", unet, {"block_out_channels": [8, 16]})))
    assert (card.id, card.native_side, card.side_multiple) == ("tiny", 64, 4)
    assert card.size_error(64, 60) is None


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "/nowhere/at/all"])
def test_what_is_no_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelNotFound, match=name) as caught:
        resolve(name)
    assert caught.value.param == "model"


def test_a_folder_without_a_unet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"unet/config\.json"):
        resolve(str(tmp_path))


def test_a_folder_with_broken_json_is_refused(tmp_path: Path) -> None:
    sdxl_folder(tmp_path, {}, {})
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelNotFound, match="not valid JSON"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (64, 64, None),
        (96, 64, None),
        (64, 72, "multiples of 16"),
        (32, 64, "between 48 and 128"),
        (144, 64, "between 48 and 128"),
        (128, 128, None),
    ],
)
def test_the_demo_model_says_which_sizes_it_can_draw(
    width: int, height: int, reason: str | None
) -> None:
    error = resolve("koala-demo").size_error(width, height)
    assert error is None if reason is None else reason in str(error)


def test_too_many_pixels_are_refused_although_each_side_is_allowed() -> None:
    assert "at most" in str(resolve("koala-lightning-700m").size_error(2048, 2048))


def test_the_readme_lists_the_catalogue() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    section = readme.partition("## Models")[2].partition("##")[0]
    _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert [(name, size, steps, download) for name, _, size, steps, download, _ in rows] == [
        (
            f"`{card.id}`",
            f"{card.native_side} px",
            f"{card.steps}, {card.guidance_scale:g}",
            f"{card.download_bytes / 1e9:.1f} GB" if card.download_bytes else "included",
        )
        for card in CATALOGUE
    ]
