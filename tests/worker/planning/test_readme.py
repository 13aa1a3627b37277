"""The table in README.md is what the planner says."""

from pathlib import Path

import pytest

from worker.planning.readme import BEGIN, END, MODELS, NoMarks, header, replaced, row

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_says_which_model_fits_on_which_card() -> None:
    _, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    table = rest.partition(END)[0].strip().splitlines()
    assert table[:2] == list(header())
    assert len(table) == 2 + len(MODELS)
    # One of them, for the sake of time: `make plan-table` writes them all.
    assert table[3] == row(*MODELS[1])


def test_only_what_is_between_the_marks_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(text, ["new"]) == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(NoMarks):
        replaced("nothing", ["new"])
