"""The safety check: what it refuses, and what then becomes of images, previews and jobs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from distill.scenes import BACKGROUNDS
from koala.settings import Settings
from koala.spec import Moderation
from koala.store import ImageStore
from tests.classifiers import random_checker, save_classifier
from tests.worker.rig import Rig, describe
from tests.worker.test_showing import PreviewingEngine
from worker.gallery import Gallery
from worker.run import run
from worker.safety import SafetyChecker, SafetyCheckerError


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier that calls a red background nsfw."""
    return save_classifier(tmp_path_factory.mktemp("classifier"))


def noise(seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (4, 4, 3), np.uint8)).resize((48, 40))


def test_a_classifier_refuses_what_it_calls_nsfw(classifier: Path) -> None:
    checker = SafetyChecker.load(classifier)
    refused = {
        name
        for name, colour in BACKGROUNDS.items()
        if checker.refuses(Image.new("RGB", (64, 64), colour), "auto")
    }
    assert refused == {"red"}


def test_the_verdicts_of_diffusers_checker_are_those_of_diffusers(tmp_path: Path) -> None:
    model, processor = random_checker()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    checker = SafetyChecker.load(tmp_path)
    pictures = [noise(seed) for seed in range(60)]
    pixels = processor(images=pictures, return_tensors="pt").pixel_values
    _, expected = model(pixels, [np.zeros((1, 1, 3)) for _ in pictures])
    assert [checker.refuses(picture, "auto") for picture in pictures] == expected
    assert 10 < sum(expected) < 50
    laxer = [checker.refuses(picture, "low") for picture in pictures]
    assert 0 < sum(laxer) < sum(expected)
    assert all(strict for strict, lax in zip(expected, laxer, strict=True) if lax)


@pytest.mark.parametrize(
    ("probability", "moderation", "refused"),
    [(0.5, "auto", False), (0.6, "auto", True), (0.6, "low", False), (0.9, "low", True)],
)
def test_low_moderation_lets_more_pass(
    classifier: Path, probability: float, moderation: Moderation, refused: bool
) -> None:
    checker = SafetyChecker.load(classifier)
    checker._score = lambda pixels: probability
    assert checker.refuses(noise(0), moderation) is refused


def test_a_score_that_is_no_number_refuses(classifier: Path) -> None:
    checker = SafetyChecker.load(classifier)
    checker._score = lambda pixels: float("nan")
    assert checker.refuses(noise(0), "low")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def relabelled(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog"}
    (folder / "config.json").write_text(json.dumps(config))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "config.json cannot be read: No such file or directory"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no object"),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "cannot be loaded: "),
    "no model": (lambda f: (f / "config.json").write_text("{}"), "cannot be loaded: "),
    "pickle": (pickled, "cannot be loaded: "),
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be loaded: "),
    "no head": (without_head, "lacks 1 weights: classifier.weight"),
    "cats": (relabelled, "has no label nsfw or unsafe, but cat, dog"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_one_line_that_says_why(
    wrong: str, classifier: Path, tmp_path: Path
) -> None:
    spoil, reason = WRONG[wrong]
    folder = tmp_path / "classifier"
    shutil.copytree(classifier, folder)
    spoil(folder)
    with pytest.raises(SafetyCheckerError) as caught:
        SafetyChecker.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and reason in message and "\n" not in message


def test_a_worker_does_not_start_without_the_checker_it_should_have(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = settings.data_dir / "nowhere"
    assert run(settings.model_copy(update={"safety_checker": nowhere})) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"koala: KOALA_SAFETY_CHECKER: {nowhere}/config.json cannot be read")


class Refusing(SafetyChecker):
    """Refuses by turns as it is told, and notes with which strictness it is asked."""

    def __init__(self, *verdicts: bool) -> None:
        self._verdicts = list(verdicts)
        self.asked: list[Moderation] = []

    def refuses(self, image: Image.Image, moderation: Moderation) -> bool:
        """The next verdict."""
        self.asked.append(moderation)
        return self._verdicts.pop(0)


def gallery(rig: Rig, safety: SafetyChecker) -> Gallery:
    return Gallery(ImageStore(rig.settings.resolved_image_store), describe, safety)


def test_a_job_without_any_image_left_fails_with_openais_code(rig: Rig) -> None:
    job_id = rig.submit(n=2, moderation="low")
    safety = Refusing(True, True)

    rig.work(gallery=gallery(rig, safety))

    record = rig.record(job_id)
    assert record.state == "failed" and record.error is not None
    assert record.error.code == "content_policy_violation"
    assert safety.asked == ["low", "low"]
    assert not list(Path(rig.settings.resolved_image_store).glob("*.png"))
    assert rig.metrics.images_blocked._value.get() == 2
    assert rig.leftovers() == []


def test_images_beside_a_refused_one_come_and_a_warning_names_it(rig: Rig) -> None:
    job_id = rig.submit(n=3, seed=10)
    # One after another, so that it is known which one is refused.
    kept = gallery(rig, Refusing(False, True, False))
    kept._pool._max_workers = 1

    rig.work(gallery=kept)

    record = rig.record(job_id)
    assert record.state == "completed" and record.result is not None
    assert [image.seed for image in record.result.images] == [10, 12]
    assert record.result.warnings == [
        "The image with seed 11 is withheld: the safety check refused it."
    ]
    stored = {path.name for path in Path(rig.settings.resolved_image_store).glob("*.png")}
    assert stored == {image.name for image in record.result.images}


def test_a_checker_that_breaks_shows_nothing(rig: Rig) -> None:
    job_id = rig.submit()

    rig.work(gallery=gallery(rig, Refusing()))

    record = rig.record(job_id)
    assert record.state == "failed" and record.error is not None
    assert record.error.code == "generation_failed"
    assert "not checked" in record.error.message


def test_a_preview_that_is_refused_is_not_shown(rig: Rig) -> None:
    job_id = rig.submit(num_inference_steps=9, previews=3)

    rig.work(engine=PreviewingEngine(), gallery=gallery(rig, Refusing(True, True, True, False)))

    assert rig.record(job_id).state == "completed"
    assert "preview" not in rig.told(job_id)
    assert rig.metrics.previews.labels("withheld")._value.get() == 3


def test_the_score_of_a_label_is_its_probability(classifier: Path) -> None:
    checker = SafetyChecker.load(classifier)
    pixels = checker._processor(images=noise(3), return_tensors="pt").pixel_values
    with torch.inference_mode():
        assert 0.0 <= checker._score(pixels) <= 1.0
