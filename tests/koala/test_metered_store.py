from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from koala.errors import ImageNotFound
from koala.metered_store import MeteredStore, StoreMetrics
from koala.spec import image_name, new_images_id


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def store(url: Path, registry: CollectorRegistry) -> MeteredStore:
    return MeteredStore(str(url), StoreMetrics(registry))


def test_calls_that_go_well_are_timed_by_what_they_do(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    images, name = store(tmp_path, registry), image_name(new_images_id(), 0, "png")
    images.put(name, b"pixels")
    assert images.get(name) == b"pixels"
    images.delete(name)
    assert images.names() == []
    images.probe()
    count = "koala_image_store_seconds_count"
    values = {
        operation: registry.get_sample_value(count, {"operation": operation})
        for operation in ("put", "get", "delete", "list", "probe")
    }
    assert values == {"put": 1, "get": 1, "delete": 1, "list": 1, "probe": 1}


def test_calls_that_fail_are_counted_and_not_timed(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    images, name = store(tmp_path / "file", registry), image_name(new_images_id(), 0, "png")
    for call in (
        lambda: images.put(name, b"pixels"),
        lambda: images.get(name),
        lambda: images.delete(name),
        images.probe,
    ):
        with pytest.raises(OSError):
            call()
    for operation in ("put", "get", "delete", "probe"):
        labels = {"operation": operation}
        assert registry.get_sample_value("koala_image_store_errors_total", labels) == 1
        assert registry.get_sample_value("koala_image_store_seconds_count", labels) == 0


def test_an_image_that_is_not_there_is_no_error_of_the_store(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    with pytest.raises(ImageNotFound):
        store(tmp_path, registry).get(image_name(new_images_id(), 0, "png"))
    labels = {"operation": "get"}
    assert registry.get_sample_value("koala_image_store_errors_total", labels) == 0
