"""What may be spent on previews."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Purse:
    """Seconds, earned as a share of the engine's time and saved up to a limit; full at first.

    Args:
        share: Of each second of the engine's.
        most: Seconds that can be saved up.
    """

    share: float
    most: float
    saved: float = field(init=False)

    def __post_init__(self) -> None:
        self.saved = self.most

    @property
    def is_empty(self) -> bool:
        """Whether nothing may be spent."""
        return self.saved <= 0

    def earn(self, seconds: float) -> None:
        """Note that the engine worked for so long."""
        self.saved = min(self.most, self.saved + self.share * seconds)

    def spend(self, seconds: float) -> None:
        """Note what was spent; that may be more than there was, and is owed then."""
        self.saved -= seconds

    def empty(self) -> None:
        """Lose what was saved, but nothing of what is owed."""
        self.saved = min(self.saved, 0.0)
