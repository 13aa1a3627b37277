import itertools
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from koala import output_file


def numbered(folder: Path) -> Iterator[Path]:
    return (folder / f"{number}.png" for number in itertools.count(1))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can get longer than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_however_many_write_at_once_none_writes_over_another(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def write(number: int) -> Path:
        together.wait(30)
        return output_file.write_new(numbered(tmp_path), b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(write, range(8)))
    assert [path.read_bytes() for path in paths] == [b"%d" % number for number in range(8)]
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.png" for n in range(1, 9)}


def test_what_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match=r"1\.png"):
        output_file.write_new(numbered(tmp_path), bytes(1000))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_there_is_anything_to_write(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match=str(tmp_path)):
        output_file.check(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_if_it_cannot_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with full_disk(), pytest.raises(OSError, match=r"a\.png"):
        output_file.replace(path, bytes(1000))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_is_replaced_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"before")
    (tmp_path / "link.png").symlink_to("a.png")
    output_file.replace(tmp_path / "link.png", b"after")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "a.png").read_bytes() == b"after"


def test_folders_that_are_missing_are_made(tmp_path: Path) -> None:
    output_file.check(tmp_path / "a" / "b" / "c.png")
    assert (tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.png", Path("/proc/a.png")):
        with pytest.raises(OSError, match=r"\[Errno") as refusal:
            output_file.check(path)
        assert refusal.value.filename in (str(path), str(path.parent))


def test_the_longest_names_and_links_to_themselves_are_written(tmp_path: Path) -> None:
    longest = tmp_path / f"{'a' * 251}.png"
    assert output_file.write_new([longest], b"whole") == longest
    assert longest.read_bytes() == b"whole"
    loop = tmp_path / "loop.png"
    loop.symlink_to("loop.png")
    output_file.replace(loop, b"whole")
    assert loop.read_bytes() == b"whole"
