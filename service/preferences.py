"""The ``Prefer`` request header (RFC 7240), as far as a generation can honour it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# Possessive throughout: the header is a stranger's, and backtracking would take him at his word.
_SPACE: Final = r"[ \t]*+"
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_WORD: Final = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*+")'
_PARAMETER: Final = rf"(?:{_TOKEN}{_SPACE}(?:={_SPACE}{_WORD}?+)?+)?+"
# One preference: name, optional value, and parameters, which no preference of ours has.
_PREFERENCE: Final = re.compile(
    rf"{_SPACE}({_TOKEN}){_SPACE}(?:={_SPACE}({_WORD})?+{_SPACE})?+"
    rf"(?:;{_SPACE}{_PARAMETER}{_SPACE})*+(?:,|$)"
)


@dataclass(frozen=True, slots=True)
class Preference:
    """How a client wants to wait: ``wait`` seconds, and ``respond_async`` not at all.

    Both together mean: wait so long, then answer with the job.
    """

    respond_async: bool = False
    wait: int | None = None

    def seconds(self, longest: float) -> float:
        """How long to wait, where ``longest`` is the most that anybody may."""
        if self.wait is not None:
            return min(float(self.wait), longest)
        return 0.0 if self.respond_async else longest

    @property
    def accepts_job(self) -> bool:
        """Whether an unfinished job is a good answer."""
        return self.respond_async or self.wait is not None

    def applied(self, longest: float, *, finished: bool) -> str | None:
        """The value of ``Preference-Applied``; ``None`` where nothing was preferred."""
        parts = []
        if self.respond_async and not finished:
            parts.append("respond-async")
        if self.wait is not None:
            parts.append(f"wait={min(self.wait, int(longest))}")
        return ", ".join(parts) or None


def parse(headers: Iterable[str]) -> Preference:
    """The preference in all ``Prefer`` headers of a request.

    As the RFC asks: the first mention of a preference counts, unknown and malformed ones are
    ignored, and several headers are one list.
    """
    found: dict[str, str] = {}
    for header in headers:
        position = 0
        while position < len(header):
            match = _PREFERENCE.match(header, position)
            if match is None:
                # Malformed up to the next comma.
                position = header.find(",", position) + 1 or len(header)
                continue
            position = match.end()
            found.setdefault(match[1].lower(), _unquote(match[2] or ""))
    wait = found.get("wait", "")
    return Preference(
        respond_async=found.get("respond-async") == "",
        # Ten digits are over three centuries; int() refuses absurd lengths with an error.
        wait=int(wait[:10]) if wait.isascii() and wait.isdigit() else None,
    )


def _unquote(word: str) -> str:
    if word.startswith('"'):
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    return word
