"""Curves of scored folders in one figure: ``fanet plot scores=[DIR,DIR] out=DIR``. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable
from fanet_lightning.report.figures import (
    WIDTHS_INCHES,
    Layout,
    pascal_label,
    precision_recall_figure,
    read_roc_file,
    roc_figure,
    save_figure,
    wider_label,
)
from fanet_lightning.score.coco import read_coco_curves
from fanet_lightning.score.results import TITLES
from fanet_lightning.score.wider_face.benchmark import CURVES_FILE, read_curves

# What must be the same before curves may stand in one figure: another number of faces is another question. Of the rules
# those that a person chooses; a fitted transform differs from detector to detector.
SAME = ("benchmark", "images", "faces")
SAME_RULES = ("labels", "alignment", "ellipses", "folds", "categories", "max_detections")
# The official val split, which alone the published curves are about: images, and faces that count per setting.
WIDER_VAL_IMAGES = 3226
WIDER_VAL_FACES = {"easy": 7211, "medium": 13319, "hard": 31958}
ROC_FILES = {"discrete": "DiscROC.txt", "continuous": "ContROC.txt"}


@dataclass(frozen=True)
class ScoredFolder:
    """A folder that score or evaluate has written, and what its ``scores.json`` holds."""

    path: Path
    scores: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        return str(self.scores["benchmark"])

    @property
    def protocol(self) -> str:
        return str(self.scores.get("protocol") or "protocol not stated")

    @property
    def is_wider_val(self) -> bool:
        """Whether these are all images and faces of WIDER FACE val, so that the published curves compare."""
        own = (self.benchmark, self.scores["images"], self.scores.get("faces"))
        return own == ("wider_face", WIDER_VAL_IMAGES, WIDER_VAL_FACES)

    @property
    def image_ids(self) -> list[bytes] | None:
        """The images in alphabetical order; None where the folder keeps no counts per image, which alone name them."""
        if not (file := self.path / "per_image.npz").is_file():
            return None
        with np.load(file, allow_pickle=False) as arrays:
            return sorted(arrays["image_ids"].tobytes().split(b"\n"))


def read_scored_folder(path: Path) -> ScoredFolder:
    """
    Raises:
        InputError: no ``scores.json``, or none that names a benchmark and a number of images.
    """
    file = path / "scores.json"
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        return ScoredFolder(path, {"benchmark": scores["benchmark"], "images": scores["images"], **scores})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} cannot be read ({error!r}); give a folder that score has written") from error


def check_comparable(read: Sequence[ScoredFolder]) -> None:
    """Same benchmark, images, faces and rules.

    Raises:
        InputError: two folders that differ, with what they differ in.
    """
    first = read[0]
    rules = first.scores.get("rules", {})
    for other in read[1:]:
        pairs = [(key, first.scores.get(key), other.scores.get(key)) for key in SAME]
        pairs += [(key, rules.get(key), other.scores.get("rules", {}).get(key)) for key in SAME_RULES]
        for key, here, there in pairs:
            if here != there:
                texts = f"{key} {json.dumps(here)[:80]} and {json.dumps(there)[:80]}"
                raise InputError(f"{first.path} and {other.path} do not compare: {texts}; plot them apart")
        if None not in (ids := (first.image_ids, other.image_ids)) and ids[0] != ids[1]:
            raise InputError(f"{first.path} and {other.path} do not compare: the images; plot them apart")


def names_of(read: Sequence[ScoredFolder], names: Sequence[str] | None) -> list[str]:
    """A name for each folder: those given, else the folders' own with the protocol where it differs.

    Raises:
        InputError: another number of names than folders, an empty one, or the same name twice.
    """
    chosen = list(names or ())
    if names is None:
        chosen = [folder.path.resolve().name for folder in read]
        if len(set(chosen)) < len(chosen):  # evaluations of several runs are all called that
            chosen = ["/".join(folder.path.resolve().parts[-2:]) for folder in read]
        if len({folder.protocol for folder in read}) > 1:
            chosen = [f"{name}, {folder.protocol}" for name, folder in zip(chosen, read, strict=True)]
    if len(set(chosen)) != len(read) or not all(name.strip() for name in chosen):
        raise InputError(f"names {chosen} for {len(read)} folders; give names=[…], one for each, in their order")
    return chosen


def title_of(runs: Mapping[str, ScoredFolder]) -> str:
    """Benchmark, images, rules and protocol. Where protocols differ, each name with its own."""
    first = next(iter(runs.values()))
    images, rules = first.scores["images"], first.scores.get("rules", {})
    whole = first.scores.get("images_of_benchmark", images)
    text = TITLES.get(first.benchmark, first.benchmark) + (" val" if first.is_wider_val else "")
    text += f", {images:,} images" if images == whole else f" sample, {images:,} of {whole:,} images"
    if rules.get("labels") not in (None, "corrected"):
        text += f", {rules['labels']} labels"
    if rules.get("alignment") is False:
        text += ", not aligned"
    if rules.get("ellipses") not in (None, "as_given"):
        text += f", ellipses {rules['ellipses']}"
    if len({folder.protocol for folder in runs.values()}) == 1:
        return f"{text}, {'protocol ' if first.scores.get('protocol') else ''}{first.protocol}"
    return f"{text}, protocols: {', '.join(f'{name} {folder.protocol}' for name, folder in runs.items())}"


USAGE = "fanet plot scores=[DIR,DIR] out=DIR [published=[FANet,SFD]] [names=[…]] [layout=column]"
# What scoring writes and this draws.
CURVE_FILES = ("pr_curves.npz", "DiscROC.txt")


def plot_scores(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    published: Sequence[str] | None = None,
    layout: Layout = "page",
    max_false_positives: float | None = 2000,
    scale: Literal["linear", "log"] = "linear",
) -> list[Path]:
    """Write ``pr_curves.pdf`` and ``.png``, for FDDB ``roc.pdf`` and ``.png``, into ``out``; gives their paths.

    Args:
        folders: with ``scores.json`` and the curves, of one benchmark, the same images, faces and rules.
        names: one for each folder; None: the folders' own.
        published, layout: see :func:`fanet_lightning.report.figures.precision_recall_figure`.
        max_false_positives, scale: see :func:`fanet_lightning.report.figures.roc_figure`.

    Raises:
        InputError: folders that cannot be read or do not compare, another number of names than folders, published
            curves with another benchmark.
    """
    read = [read_scored_folder(path) for path in folders]
    if not read:
        raise InputError("scores= names no folder; give at least one that score or evaluate has written")
    check_comparable(read)
    runs = dict(zip(names_of(read, names), read, strict=True))
    benchmark, title = read[0].benchmark, title_of(runs)
    if published is not None and benchmark != "wider_face":
        raise InputError(
            f"published= are curves of WIDER FACE, these are of {TITLES.get(benchmark, benchmark)}; leave it out"
        )
    check_writable(out)
    if benchmark == "fddb":
        files = ROC_FILES.items()
        rocs = {name: {key: read_roc_file(own.path / file) for key, file in files} for name, own in runs.items()}
        figure = roc_figure(rocs, title, max_false_positives=max_false_positives, scale=scale, layout=layout)
        return save_figure(figure, out / "roc")
    read_file = read_coco_curves if benchmark == "coco" else read_curves
    figure = precision_recall_figure(
        {name: read_file(folder.path / CURVES_FILE) for name, folder in runs.items()},
        title,
        published=published,
        sample=not read[0].is_wider_val,
        label=pascal_label if benchmark in ("pascal_face", "afw") else wider_label,
        layout=layout,
    )
    return save_figure(figure, out / "pr_curves")


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("plot", argv, USAGE, required=["scores", "out"])
    if config is None:
        return 0
    options = plain(config)
    for key, choices in (("layout", WIDTHS_INCHES), ("scale", ("linear", "log"))):
        if options[key] not in choices:
            raise InputError(f"{key}={options[key]} is unknown; take {' or '.join(choices)}")
    limit = options["max_false_positives"]
    if limit is not None and limit <= 0:
        raise InputError(f"max_false_positives={limit} is no number above 0; null takes the whole curve")
    # A single word is a list of one.
    scores, names, published = (
        None
        if (value := options[key]) is None
        else [str(item) for item in (value if isinstance(value, list) else [value])]
        for key in ("scores", "names", "published")
    )
    written = plot_scores(
        [Path(text) for text in scores or []], Path(str(options["out"])), names=names, published=published,
        layout=options["layout"], max_false_positives=limit, scale=options["scale"],
    )  # fmt: skip
    print(f"written: {' and '.join(str(path) for path in written)}")
    return 0
