"""How many files and sockets a process may have open."""

import resource
from typing import Final

# What macOS allows at the most where it names no number (OPEN_MAX).
_UNNAMED: Final = 10_240


def raise_descriptor_limit() -> int:
    """Raise this process' limit to the hard one, for its children too; the limit then.

    The usual soft limit of 1,024 is for programs that use ``select``; none here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _UNNAMED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return descriptor_limit()


def descriptor_limit() -> int:
    """How many this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNNAMED if soft == resource.RLIM_INFINITY else soft
