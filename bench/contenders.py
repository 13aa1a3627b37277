"""Who is compared."""

from enum import StrEnum
from typing import Final


class Contender(StrEnum):
    """The contenders, in the order of every table."""

    RAW = "raw"
    OURS = "ours"
    WHOLE = "whole"
    LITSERVE = "litserve"
    LOCK = "lock"

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return _TITLES[self]


# All that takes requests; the raw limit takes none.
SERVERS: Final = (Contender.OURS, Contender.WHOLE, Contender.LITSERVE, Contender.LOCK)

_TITLES: Final = {
    Contender.RAW: "raw limit",
    Contender.OURS: "koala-serve",
    Contender.WHOLE: "whole requests",
    Contender.LITSERVE: "LitServe",
    Contender.LOCK: "FastAPI + lock",
}
