"""Writes the results into the document, between two marks."""

from pathlib import Path
from typing import Final
from urllib.parse import quote

from bench.contenders import Contender
from bench.results import CurvePoint, Results
from bench.tables import all_tables

BEGIN: Final = "<!-- results -->"
END: Final = "<!-- end of results -->"


class NoMarks(Exception):
    """The document has no place for results; the message says which marks it needs."""


def plots_folder(document: Path) -> Path:
    """Where the plots of a document lie: in a folder of its name beside it.

    Wherever the results are: a link out of the document's own tree would lead nowhere on any other
    machine.
    """
    return document.with_suffix("")


def write(results: Results, document: Path) -> None:
    """Replace what stands between the marks of ``document``.

    Args:
        results: A run.
        document: A Markdown file that holds both marks.

    Raises:
        NoMarks: The document lacks a mark.
    """
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoMarks(f"{document} needs the marks {BEGIN} and {END}")
    # In Markdown a space would end the link.
    folder = quote(plots_folder(document).name)
    document.write_text(f"{before}{BEGIN}\n\n{section(results, folder)}\n{END}{after}")


def section(results: Results, plots: str) -> str:
    """The section of results in Markdown.

    Args:
        results: A run.
        plots: The folder with the plots, as seen from the document.
    """
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    parts = [
        f"Measured {results.created} with version {results.version}: {machine}; "
        f"{results.torch_threads} torch threads, at most {results.batch_rows} rows per U-Net call, "
        f"medians of {results.rounds} rounds.",
        f"![Throughput over clients]({plots}/throughput.png)",
        f"![Latency under Poisson arrivals]({plots}/latency.png)",
    ]
    for table in all_tables(results):
        parts += [f"### {table.title}", table.markdown()]
        if table.title == "The model alone":
            parts.append(_gain(results.curve))
    parts.append(_generator(results))
    return "\n\n".join(parts) + "\n"


def _gain(curve: list[CurvePoint]) -> str:
    alone = next(point for point in curve if point.batch == 1)
    best = min(curve, key=lambda point: point.unet_row_ms)
    gain = alone.unet_row_ms / best.unet_row_ms
    return (
        f"A row in a batch of {best.batch} takes {gain:.1f} times less than alone, so batching is "
        f"worth at most that factor here."
    )


def _generator(results: Results) -> str:
    shares = [run.generator_cpu for run in results.runs if run.contender is Contender.OURS]
    share = max(shares, default=0.0)
    return (
        f"The load generator took at most {100 * share:.0f} % of one core while we were measured."
    )
