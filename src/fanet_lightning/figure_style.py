"""What all figures share: a style fit for a paper, colours that the colour-blind tell apart, and how they are saved."""

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fanet_lightning.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Vector text stays text in the PDF (TrueType, not the Type 3 that many publishers refuse).
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
}
# M. Okabe, K. Ito: Color Universal Design, 2008; the strongest first, without the yellow, which fades on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# For the eighth line and on the colours come again, dashed.
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)))

# Widths of a page of text and of one column of two, in inches: neither is scaled when it is set in a paper.
Layout = Literal["page", "column"]
WIDTHS_INCHES: dict[Layout, float] = {"page": 7.0, "column": 3.4}
_TEXT_POINTS = 7.5
_LINE_INCHES = 0.145
# Of the x axis, between a panel and its legend.
_LABELS_INCHES = 0.42


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th run."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "linewidth": 1.5,
    }


@contextmanager
def panels(
    count: int, *, title: str, note: str, legend_lines: int, layout: Layout
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A figure of ``count`` panels: side by side on a page, one above the other in a column.

    Args:
        title: protocol and data, so that the numbers are never without them.
        note: below the panels: what a reader must know before comparing.
        legend_lines: room for so many below each panel.
        layout: page or column.

    Raises:
        ValueError: another layout.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if layout not in WIDTHS_INCHES:
        raise ValueError(f"layout={layout!r} is none of {', '.join(WIDTHS_INCHES)}")
    width = WIDTHS_INCHES[layout]
    rows, columns = (count, 1) if layout == "column" else (1, count)
    if layout == "page" and count == 1:
        width = WIDTHS_INCHES["column"]
    titles, notes = (wrapped(text, width) for text in (title, note))
    panel = min(width / columns, 3.0) * (0.6 if rows > 1 else 0.85)
    height = rows * (panel + 0.65 + _LINE_INCHES * legend_lines)
    height += _LINE_INCHES * sum(text.count("\n") + 1 for text in (titles, notes) if text)
    with mpl.rc_context({**STYLE, "font.size": 8, "legend.fontsize": _TEXT_POINTS, "axes.titlesize": 8.5}):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.05)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
        if titles:
            figure.suptitle(titles, fontsize=8.5, parse_math=False)
        if notes:
            figure.supxlabel(notes, fontsize=7, color="0.3", parse_math=False)
        yield figure, axes
        if columns > 1:
            for axis in axes[1:]:
                axis.set_ylabel("")
        # Laid out once; else each file that it is written to would do it again.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def legend_below(axis: "Axes", lines: "Sequence[Line2D]", title: str | None = None) -> None:
    """The legend under its panel, in the order of ``lines``: inside it would hide curves that fall early."""
    from matplotlib.transforms import ScaledTranslation

    below = ScaledTranslation(0, -_LABELS_INCHES, axis.figure.dpi_scale_trans)
    legend = axis.legend(
        lines,
        # Their own labels come below: here one that starts with _ would be left out, and $ would begin a formula.
        ["-"] * len(lines),
        title=title,
        title_fontsize=_TEXT_POINTS,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(-0.02, 0),
        bbox_transform=axis.transAxes + below,
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        handlelength=2.2,
        labelspacing=0.25,
    )
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_parse_math(False)
        text.set_text(line.get_label())


def label_lines(names: Sequence[str], count: int, layout: Layout) -> tuple[int, int]:
    """Characters that fit into a line of the legend below one of ``count`` panels, and lines that the names take."""
    width = WIDTHS_INCHES["column"] if layout == "column" or count == 1 else WIDTHS_INCHES["page"] / count
    characters = int((width - 0.45) * 16)
    # A number of up to ten characters follows the name.
    return characters, sum(-(-(len(name) + 10) // characters) for name in names)


def wrapped(text: str, width_inches: float) -> str:
    """Text broken into lines of a figure's width at 7 to 9 points."""
    return "\n".join(
        line for part in text.splitlines() for line in textwrap.wrap(part, max(20, int(width_inches * 15.5)))
    )


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write ``stem``.pdf (vector, for papers) and ``stem``.png (for looking); each appears by rename.

    The same figure gives the same files, without the time of day.
    """
    import matplotlib as mpl

    # It reports on every table of every font where the root logger lets it, as Hydra's does.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    paths = []
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {})):
        path = stem.with_name(stem.name + suffix)
        # The style of fonts is read when a file is written, not when the figure is made.
        with replaced(path) as temporary, mpl.rc_context(STYLE):
            figure.savefig(temporary, format=suffix[1:], dpi=200, metadata=metadata)
        paths.append(path)
    return paths
