"""``python -m fanet_lightning.plot scores=[DIR,DIR] out=DIR``: curves of scored folders in one figure. No torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fanet_lightning import cli
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable
from fanet_lightning.scored_folders import (
    TITLES,
    ScoredFolder,
    check_comparable,
    names_of,
    note_of,
    read_scored_folder,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fanet_lightning.figure_style import Layout
    from fanet_lightning.scoring.curves import Curve

USAGE = "python -m fanet_lightning.plot scores=[DIR,DIR] out=DIR [published=[FANet,SFD]] [names=[…]] [layout=column]"
# What scoring writes and this draws.
CURVE_FILES = ("pr_curves.npz", "DiscROC.txt")


def plot_scores(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    published: Sequence[str] | None = None,
    layout: "Layout" = "page",
    max_false_positives: float | None = 2000,
    scale: Literal["linear", "log"] = "linear",
) -> list[Path]:
    """Write ``pr_curves.pdf`` and ``.png``, for FDDB ``roc.pdf`` and ``.png``, into ``out``.

    Args:
        folders: with ``scores.json`` and the curves, of one benchmark, the same images, faces and rules; or with curve
            files of FDDB's program alone (``…DiscROC.txt``, ``…ContROC.txt``), which the figure then says.
        out: folder, made if need be.
        names: one for each folder; None: the folders' own.
        published: WIDER FACE methods, see :func:`fanet_lightning.curve_plots.precision_recall_figure`.
        layout, max_false_positives, scale: see there and :func:`fanet_lightning.roc_plots.roc_figure`.

    Returns:
        What was written.

    Raises:
        InputError: folders that cannot be read or do not compare, another number of names than folders, published
            curves beside another benchmark.
    """
    from fanet_lightning.figure_style import save_figure

    read = [read_scored_folder(path) for path in folders]
    if not read:
        raise InputError("scores= names no folder; give at least one that score or evaluate has written")
    check_comparable(read)
    runs = dict(zip(names_of(read, names), read, strict=True))
    benchmark = read[0].benchmark
    if published is not None and benchmark != "wider_face":
        raise InputError(f"published= are curves of WIDER FACE, these are of {TITLES[benchmark]}; leave it out")
    check_writable(out)
    if benchmark == "fddb":
        figure = _roc(runs, layout, max_false_positives, scale)
        return save_figure(figure, out / "roc")
    return save_figure(_precision_recall(runs, published, layout), out / "pr_curves")


def _roc(
    runs: Mapping[str, ScoredFolder], layout: "Layout", limit: float | None, scale: Literal["linear", "log"]
) -> "Figure":
    from fanet_lightning.roc_plots import read_roc_file, roc_figure

    curves = {
        name: {score: read_roc_file(file) for score, file in folder.roc_files().items()}
        for name, folder in runs.items()
    }
    return roc_figure(curves, title_of(runs), max_false_positives=limit, scale=scale, note=note_of(runs), layout=layout)


def _precision_recall(runs: Mapping[str, ScoredFolder], published: Sequence[str] | None, layout: "Layout") -> "Figure":
    from fanet_lightning.curve_plots import pascal_label, precision_recall_figure, wider_label

    read = list(runs.values())
    return precision_recall_figure(
        {name: _curves(folder) for name, folder in runs.items()},
        title_of(runs),
        published=published,
        sample=not read[0].is_wider_val,
        label=pascal_label if read[0].benchmark in ("pascal_face", "afw") else wider_label,
        layout=layout,
    )


def _curves(folder: ScoredFolder) -> "dict[str, Curve]":
    from fanet_lightning.scoring.wider_face_benchmark import CURVES_FILE, read_curves

    path = folder.path / CURVES_FILE
    if folder.benchmark != "coco":
        return read_curves(path)
    from fanet_lightning.scoring.coco_benchmark import read_coco_curves

    return read_coco_curves(path)


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("plot", argv, USAGE, required=["scores", "out"])
    if config is None:
        return 0
    from fanet_lightning.config import plain
    from fanet_lightning.figure_style import WIDTHS_INCHES

    options = plain(config)
    if options["layout"] not in list(WIDTHS_INCHES):
        raise InputError(f"layout={options['layout']} is unknown; take {' or '.join(WIDTHS_INCHES)}")
    if options["scale"] not in ("linear", "log"):
        raise InputError(f"scale={options['scale']} is unknown; take linear or log")
    limit = options["max_false_positives"]
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (is_number and math.isfinite(limit) and limit > 0):
        raise InputError(f"max_false_positives={limit} is no number above 0; null takes the whole curve")
    written = plot_scores(
        [Path(text) for text in _as_list("scores", options["scores"])],
        Path(str(options["out"])),
        names=None if options["names"] is None else _as_list("names", options["names"]),
        published=None if options["published"] is None else _as_list("published", options["published"]),
        layout=cast("Layout", options["layout"]),
        max_false_positives=limit,
        scale=options["scale"],
    )
    print(f"written: {' and '.join(str(path) for path in written)}")
    return 0


def _as_list(key: str, value: Any) -> list[str]:
    """A list, or a single word for a list of one."""
    if isinstance(value, Mapping):
        raise InputError(f"{key}={value} is no list; write {key}=[a,b]")
    return [str(item) for item in (value if isinstance(value, list) else [value])]


if __name__ == "__main__":
    cli.run(main)
