"""What ``koala generate``'s arguments come to."""

from pathlib import Path

import pytest

from koala.commands.generate.pieces import UsageError, collect


def test_files_are_numbered_as_wide_as_the_batch_needs(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa koala\n" + "a banana\n" * 99, encoding="utf-8")
    pieces = collect(None, str(prompts), {"n": 1}, tmp_path)
    assert [piece.path.name for piece in (pieces[0], pieces[-1])] == [
        "001-a-koala.png",
        "100-a-banana.png",
    ]
    assert pieces[0].request == {"n": 1, "prompt": "a koala"}


def test_a_file_that_is_named_must_not_exist_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "koala-2.png").touch()
    named = tmp_path / "koala.png"
    assert [piece.path for piece in collect("a koala", None, {"n": 1}, named)] == [named]
    with pytest.raises(UsageError, match=r"koala-2\.png exists: .* --force"):
        collect("a koala", None, {"n": 2}, named)
    [piece] = collect("a koala", None, {"n": 2}, named, force=True)
    assert piece.force


def test_the_folder_of_a_file_is_made_before_anything_is_drawn(tmp_path: Path) -> None:
    collect("a koala", None, {}, tmp_path / "missing" / "x.png")
    assert (tmp_path / "missing").is_dir()


@pytest.mark.parametrize(
    ("prompt", "batch", "output", "says"),
    [
        (None, None, None, "Give a prompt, or a file of them with --batch."),
        ("a koala", "prompts.txt", None, "Give either a prompt or --batch, not both."),
        (None, "nowhere.txt", None, "--batch: nowhere.txt: No such file or directory"),
        (None, "empty.txt", None, "--batch: empty.txt: there is no prompt in it."),
        (None, "binary.txt", None, "--batch: binary.txt: it is not text in UTF-8."),
        (None, "prompts.txt", "koala.png", "--output: koala.png: with --batch this is a folder"),
        (None, "prompts.txt", "prompts.txt", "--output: prompts.txt: Not a directory"),
        ("a koala", None, "prompts.txt/x.png", "--output: prompts.txt: Not a directory"),
        ("a koala", None, "/proc/x.png", "--output: /proc: "),
        ("a koala", None, "koala.gif", "--output: koala.gif: the file name must end in one of"),
    ],
)
def test_arguments_that_cannot_be_meant_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str | None,
    batch: str | None,
    output: str | None,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a koala\n")
    Path("empty.txt").write_text("# nothing\n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError) as refusal:
        collect(prompt, batch, {}, None if output is None else Path(output))
    assert str(refusal.value).startswith(says)
