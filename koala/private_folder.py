"""Folders that no other user of the machine has a say in."""

import os
import stat
from pathlib import Path

_GROUP_OR_OTHERS = 0o022


def make_private(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, for this user alone.

    What exists keeps its permissions: they are the operator's choice.

    Raises:
        OSError: It cannot be made, or is no folder.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    for each in (*reversed(missing), folder):
        # Another process may make it at the same time.
        each.mkdir(mode=0o700, exist_ok=True)


def intruder(folder: Path) -> str | None:
    """How another user could put files of theirs into ``folder``, if they could; else ``None``.

    For a folder in a place that is shared, such as the temporary directory: there another user may
    have made it first. One that does not exist has no owner yet.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return "it is a link" if stat.S_ISLNK(found.st_mode) else "it is no folder"
    if found.st_uid != os.geteuid():
        return f"it belongs to another user (uid {found.st_uid})"
    if found.st_mode & _GROUP_OR_OTHERS:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    return None
