"""How fast a decoder is, as far as previews have to know."""

from dataclasses import dataclass


@dataclass(slots=True)
class Pace:
    """Seconds that a decoder takes for one square of latents, as last seen.

    The first call, which may have to warm up, tells nothing.
    """

    seconds: float | None = None
    is_warm: bool = False

    def affordable(self, seconds: float, squares: int, wanted: int) -> int:
        """How many latents of ``squares`` each ``seconds`` pay for, of those ``wanted``."""
        if not self.seconds:
            return wanted
        return min(wanted, int(seconds / (self.seconds * squares)))

    def note(self, seconds: float, squares: int) -> None:
        """Learn from a call that took ``seconds`` for ``squares`` in all."""
        if self.is_warm:
            pace = seconds / squares
            # One slow call must not look like a slow device.
            self.seconds = pace if self.seconds is None else min(pace, 2 * self.seconds)
        self.is_warm = True
