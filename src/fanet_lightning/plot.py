"""``python -m fanet_lightning.plot scores=[DIR,DIR] out=DIR``: curves of scored folders in one figure. No torch."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fanet_lightning import cli
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fanet_lightning.figure_style import Layout
    from fanet_lightning.scoring.curves import Curve

USAGE = "python -m fanet_lightning.plot scores=[DIR,DIR] out=DIR [published=[FANet,SFD]] [names=[…]] [layout=column]"
TITLES = {
    "wider_face": "WIDER FACE", "synthetic": "drawn faces", "fddb": "FDDB", "pascal_face": "PASCAL face", "afw": "AFW",
    "coco": "COCO",
}  # fmt: skip
# What scoring writes and this draws.
CURVE_FILES = ("pr_curves.npz", "DiscROC.txt")
# What must be the same before curves may stand in one figure: another number of faces is another question. Of the rules
# those that a person chooses; a fitted transform differs from detector to detector.
SAME = ("benchmark", "images", "faces")
SAME_RULES = ("labels", "alignment", "ellipses", "folds", "categories", "max_detections")


@dataclass(frozen=True)
class ScoredFolder:
    """A folder of ``score`` or ``evaluate`` and what its ``scores.json`` holds."""

    path: Path
    scores: Mapping[str, Any]


def read_scored_folder(path: Path) -> ScoredFolder:
    """
    Raises:
        InputError: no ``scores.json`` in it, or one that cannot be read.
    """
    file = path / "scores.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give a folder that score has written") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); score the predictions again") from error
    if not isinstance(content, dict) or content.get("benchmark") not in TITLES:
        raise InputError(f"{file} names no benchmark; give a folder that score or evaluate has written")
    return ScoredFolder(path, content)


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
        folders: with ``scores.json`` and the curves, of one benchmark, the same images, faces and rules.
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
    _check_comparable(read)
    runs = dict(zip(_names(read, names), read, strict=True))
    benchmark = read[0].scores["benchmark"]
    if published is not None and benchmark != "wider_face":
        raise InputError(f"published= are curves of WIDER FACE, these are of {TITLES[benchmark]}; leave it out")
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    if benchmark == "fddb":
        figure = _roc(runs, layout, max_false_positives, scale)
        return save_figure(figure, out / "roc")
    return save_figure(_precision_recall(runs, published, layout), out / "pr_curves")


def _check_comparable(read: Sequence[ScoredFolder]) -> None:
    first = read[0]
    for other in read[1:]:
        pairs = [(key, first.scores.get(key), other.scores.get(key)) for key in SAME]
        rules, other_rules = (folder.scores.get("rules") or {} for folder in (first, other))
        pairs += [(key, rules.get(key), other_rules.get(key)) for key in SAME_RULES]
        for key, here, there in pairs:
            if here != there:
                raise InputError(
                    f"{first.path} and {other.path} do not compare: {key} {_short(here)} and {_short(there)}; "
                    "plot them apart"
                )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def _names(read: Sequence[ScoredFolder], names: Sequence[str] | None) -> list[str]:
    if names is not None:
        if len(names) != len(read):
            raise InputError(f"{len(names)} names for {len(read)} folders; give one for each, in their order")
        chosen = [str(name) for name in names]
    else:
        chosen = [folder.path.resolve().name for folder in read]
        if len(set(chosen)) < len(chosen):  # evaluations of several runs are all called that
            chosen = ["/".join(folder.path.resolve().parts[-2:]) for folder in read]
        if len({folder.scores.get("protocol") for folder in read}) > 1:
            chosen = [
                f"{name}, {folder.scores.get('protocol') or 'protocol not stated'}"
                for name, folder in zip(chosen, read, strict=True)
            ]
    repeated = [name for name, count in Counter(chosen).items() if count > 1]
    if repeated:
        raise InputError(f"'{repeated[0]}' names two folders; give names=[…], one for each")
    return chosen


def _title(read: Sequence[ScoredFolder]) -> str:
    scores = read[0].scores
    images, whole = scores.get("images"), scores.get("images_of_benchmark", scores.get("images"))
    text = f"{TITLES[scores['benchmark']]}, {images:,} images"
    if images != whole:
        text = f"{TITLES[scores['benchmark']]} sample, {images:,} of {whole:,} images"
    rules = scores.get("rules") or {}
    if rules.get("labels") not in (None, "corrected"):
        text += f", {rules['labels']} labels"
    if rules.get("alignment") is False:
        text += ", not aligned"
    if rules.get("ellipses") not in (None, "as_given"):
        text += f", ellipses {rules['ellipses']}"
    protocols = {folder.scores.get("protocol") for folder in read}
    if len(protocols) == 1:
        protocol = protocols.pop()
        text += f", protocol {protocol}" if protocol else ", protocol not stated"
    return text


def _roc(
    runs: Mapping[str, ScoredFolder], layout: "Layout", limit: float | None, scale: Literal["linear", "log"]
) -> "Figure":
    from fanet_lightning.roc_plots import read_roc_file, roc_figure

    files = {"discrete": "DiscROC.txt", "continuous": "ContROC.txt"}
    curves = {
        name: {score: read_roc_file(folder.path / file) for score, file in files.items()}
        for name, folder in runs.items()
    }
    return roc_figure(curves, _title(list(runs.values())), max_false_positives=limit, scale=scale, layout=layout)


def _precision_recall(runs: Mapping[str, ScoredFolder], published: Sequence[str] | None, layout: "Layout") -> "Figure":
    from fanet_lightning.curve_plots import pascal_label, precision_recall_figure, wider_label

    read = list(runs.values())
    scores = read[0].scores
    return precision_recall_figure(
        {name: _curves(folder) for name, folder in runs.items()},
        _title(read),
        published=published,
        sample=scores.get("images") != scores.get("images_of_benchmark", scores.get("images")),
        label=pascal_label if scores["benchmark"] in ("pascal_face", "afw") else wider_label,
        layout=layout,
    )


def _curves(folder: ScoredFolder) -> "dict[str, Curve]":
    from fanet_lightning.scoring.wider_face_benchmark import CURVES_FILE, read_curves

    path = folder.path / CURVES_FILE
    if folder.scores["benchmark"] != "coco":
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
    if options["layout"] not in WIDTHS_INCHES:
        raise InputError(f"layout={options['layout']} is unknown; take {' or '.join(WIDTHS_INCHES)}")
    if options["scale"] not in ("linear", "log"):
        raise InputError(f"scale={options['scale']} is unknown; take linear or log")
    limit = options["max_false_positives"]
    if limit is not None and (not isinstance(limit, int | float) or not math.isfinite(limit) or limit <= 0):
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
