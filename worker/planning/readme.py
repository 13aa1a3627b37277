"""``python -m worker.planning.readme README.md``: the table "which model on which card"."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import torch

from koala.catalogue import resolve
from worker.batching import Size
from worker.engine.residency import Residency
from worker.planning.architecture import architecture_of
from worker.planning.cards import CARDS
from worker.planning.pace import images_per_minute
from worker.planning.plan import GUIDED_ROWS, Plan
from worker.simulation.published import PROFILES

BEGIN: Final = "<!-- plan: begin -->"
END: Final = "<!-- plan: end -->"

# At 512 px, what the Turbo models draw: they have the Lightning models' parts.
MODELS: Final[tuple[tuple[str, Size], ...]] = (
    ("koala-lightning-700m", (1024, 1024)),
    ("koala-lightning-1b", (1024, 1024)),
    ("koala-lightning-700m", (512, 512)),
    ("koala-lightning-1b", (512, 512)),
)


class NoMarks(Exception):
    """A file has no place for the table."""


def header() -> Iterator[str]:
    """The first two lines of the table."""
    cards = [f"{card.name}, {card.vram >> 30} GiB" for card in CARDS.values()]
    yield "| fp16 | all of it takes | " + " | ".join(cards) + " |"
    yield "| --- " * (2 + len(cards)) + "|"


def row(model: str, size: Size) -> str:
    """A model's line: its peak, and on each card what to keep there, the batch, the pace."""
    plan = Plan(architecture_of(resolve(model)), size, torch.float16)
    cells = [f"`{model}`, {size[0]} px", f"{plan.peak(Residency.ALL) / 2**30:.1f} GiB"]
    for key, card in CARDS.items():
        chosen = plan.choose(card.vram)
        if chosen is None:
            cells.append("does not fit")
            continue
        series = "turbo" if size == (512, 512) else "lightning"
        profile = PROFILES[f"{key}/{model.replace('lightning', series)}"]
        pace = images_per_minute(profile, size, GUIDED_ROWS)
        cells.append(f"`{chosen}`, {plan.most_rows(chosen, card.vram)} rows, {pace:.0f}/min")
    return "| " + " | ".join(cells) + " |"


def replaced(text: str, lines: Iterable[str]) -> str:
    """``text`` with ``lines`` between the marks.

    Raises:
        NoMarks: It lacks one of them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise NoMarks(f"there is no {BEGIN} with an {END} behind it")
    return "\n".join([before + BEGIN, "", *lines, "", END + after])


def main() -> None:
    """Rewrite the table in the file that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    lines = [*header(), *(row(model, size) for model, size in MODELS)]
    path.write_text(replaced(path.read_text(encoding="utf-8"), lines), encoding="utf-8")


if __name__ == "__main__":
    main()
