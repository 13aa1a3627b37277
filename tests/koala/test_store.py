import threading
from pathlib import Path

import pytest

from koala.errors import ImageNotFound
from koala.store import ImageStore

NAME = "0" * 32 + "-0.png"


def test_what_was_put_is_got(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path / "images"))
    store.put(NAME, b"one")
    store.put(NAME, b"two")
    assert store.get(NAME) == b"two"
    assert [path.name for path in (tmp_path / "images").iterdir()] == [NAME]


def test_any_fsspec_url_will_do() -> None:
    store = ImageStore("memory://koala-test/images")
    store.put(NAME, b"data")
    assert ImageStore("memory://koala-test/images").get(NAME) == b"data"


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", NAME + "/../x", "." + NAME, NAME.upper() + "x", "", "a.png"],
)
def test_no_name_reaches_outside_the_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    store = ImageStore(str(tmp_path / "images"))
    with pytest.raises(ImageNotFound):
        store.get(name)
    with pytest.raises(ValueError, match="not an image name"):
        store.put(name, b"data")


def test_an_image_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound, match=NAME):
        ImageStore(str(tmp_path)).get(NAME)


def test_a_reader_never_sees_half_an_image(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path))
    images = [bytes([i]) * 2_000_000 for i in range(2)]
    store.put(NAME, images[0])
    done = threading.Event()

    def overwrite() -> None:
        for i in range(40):
            store.put(NAME, images[i % 2])
        done.set()

    writer = threading.Thread(target=overwrite)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(store.get(NAME))
    writer.join()
    assert seen
    assert all(data in images for data in seen)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        ImageStore(str(tmp_path / "file" / "images")).put(NAME, b"data")


def test_folders_made_for_images_are_private_and_others_stay_as_they_are(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    name = f"{'a' * 32}-0.png"
    for folder in (tmp_path / "data" / "images", shared):
        ImageStore(str(folder)).put(name, b"x")
    made = (tmp_path / "data", tmp_path / "data" / "images")
    assert [folder.stat().st_mode & 0o777 for folder in made] == [0o700, 0o700]
    assert shared.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_a_probe_finds_a_store_that_can_be_used_and_leaves_nothing_behind(
    kind: str, tmp_path: Path
) -> None:
    url = str(tmp_path / "images") if kind == "folder" else f"memory://probe/{tmp_path.name}"
    store = ImageStore(url)
    store.probe()
    assert store._fs.find(store._root) == []


def test_a_probe_says_what_a_store_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="nothing can be written there: "):
        ImageStore(str(tmp_path / "file")).probe()

    # Stores with such rules, which a folder on this machine has not.
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    store = ImageStore(str(tmp_path / "images"))
    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "cat_file", refuse)
        with pytest.raises(OSError, match="nothing can be read there: Permission denied"):
            store.probe()
    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "cat_file", lambda path: b"other")
        with pytest.raises(OSError, match="other bytes"):
            store.probe()
    monkeypatch.setattr(store._fs, "rm_file", refuse)
    with pytest.raises(OSError, match="nothing can be deleted there: Permission denied"):
        store.probe()


def test_what_a_probe_left_behind_is_no_image_and_is_swept(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path))
    left = [".probe-0123456789abcdef", "..probe-0123456789abcdef.01234567"]
    for name in (*left, ".probes", NAME):
        (tmp_path / name).write_bytes(b"left")
    with pytest.raises(ImageNotFound):
        store.get(left[0])
    # As the sweep does it with what no job tells of.
    assert sorted(store.names()) == sorted([*left, NAME])
    for name in left:
        store.delete(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".probes", NAME])
