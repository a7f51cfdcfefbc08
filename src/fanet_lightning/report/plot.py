"""Curves of scored folders in one figure: ``fanet plot scores=[DIR,DIR] out=DIR``. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError, check_values, counted
from fanet_lightning.cli.files import check_writable
from fanet_lightning.report.figures import (
    Layout,
    pascal_label,
    precision_recall_figure,
    read_roc_file,
    roc_figure,
    save_figure,
    wider_label,
)
from fanet_lightning.score.bootstrap import PER_IMAGE_FILE
from fanet_lightning.score.coco import read_coco_curves
from fanet_lightning.score.inputs import reading
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
    def protocol(self) -> str:
        return str(self.scores.get("protocol") or "protocol not stated")

    @property
    def is_wider_val(self) -> bool:
        """Whether these are all images and faces of WIDER FACE val, so that the published curves compare."""
        own = [self.scores.get(key) for key in SAME]
        return own == ["wider_face", WIDER_VAL_IMAGES, WIDER_VAL_FACES]

    @property
    def image_ids(self) -> list[bytes] | None:
        """The images in alphabetical order; None where the folder keeps no counts per image, which alone name them.
        InputError: that file is damaged."""
        if not (file := self.path / PER_IMAGE_FILE).is_file():
            return None
        with reading(file, "score the predictions again"), np.load(file, allow_pickle=False) as arrays:
            return sorted(arrays["image_ids"].tobytes().split(b"\n"))


def read_scored_folder(path: Path) -> ScoredFolder:
    """InputError: no ``scores.json``, or none that names a benchmark and a number of images."""
    file = path / "scores.json"
    with reading(file, "give a folder that score has written"):
        scores = json.loads(file.read_text(encoding="utf-8"))
        scores = {"benchmark": scores["benchmark"], "images": scores["images"], **scores}
    return ScoredFolder(path, scores)


def check_comparable(read: Sequence[ScoredFolder]) -> None:
    """InputError: folders that differ in benchmark, images, faces or rules, with what they differ in."""
    first, *others = ({**own.scores.get("rules", {}), **own.scores} for own in read)
    ids_of_first = read[0].image_ids if others else None
    for number, other in enumerate(others, start=1):
        pairs = [(key, json.dumps(first.get(key)), json.dumps(other.get(key))) for key in (*SAME, *SAME_RULES)]
        unlike = [f"{key} {here:.80} and {there:.80}" for key, here, there in pairs if here != there]
        ids = ids_of_first, read[number].image_ids
        unlike += ["the images"] if None not in ids and ids[0] != ids[1] else []
        if unlike:
            raise InputError(f"{read[0].path} and {read[number].path} do not compare: {unlike[0]}; plot them apart")


def names_of(read: Sequence[ScoredFolder], names: Sequence[str] | None) -> list[str]:
    """A name for each folder: those given, else the folders' own with the protocol where it differs.

    InputError: another number of names than folders, an empty one, or the same name twice.
    """
    chosen = list(names or ())
    if names is None:
        chosen = [folder.path.resolve().name for folder in read]
        if len(set(chosen)) < len(chosen):  # evaluations of several runs are all called that
            chosen = ["/".join(folder.path.resolve().parts[-2:]) for folder in read]
        if len({folder.protocol for folder in read}) > 1:
            chosen = [f"{name}, {folder.protocol}" for name, folder in zip(chosen, read, strict=True)]
    if not read or len(set(chosen)) != len(read) or not all(name.strip() for name in chosen):
        folders = counted(len(read), "folder")
        raise InputError(f"names {chosen} for {folders} in scores=; give names=[…], one for each, in their order")
    return chosen


def title_of(runs: Mapping[str, ScoredFolder]) -> str:
    """Benchmark, images, rules and protocol. Where protocols differ, each name with its own."""
    first = next(iter(runs.values()))
    images, rules = first.scores["images"], first.scores.get("rules", {})
    whole = first.scores.get("images_of_benchmark", images)
    benchmark = str(first.scores["benchmark"])
    text = TITLES.get(benchmark, benchmark) + (" val" if first.is_wider_val else "")
    text += f", {counted(images, 'image')}" if images == whole else f" sample, {images:,} of {whole:,} images"
    unusual = {"labels": ("corrected", "{} labels"), "alignment": (True, "not aligned"),
               "ellipses": ("as_given", "ellipses {}")}  # fmt: skip
    for key, (usual, words) in unusual.items():
        text += "" if rules.get(key) in (None, usual) else f", {words.format(rules[key])}"
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
        published, layout, max_false_positives, scale: see :mod:`fanet_lightning.report.figures`.

    InputError: folders that cannot be read or do not compare, other names, published curves of another benchmark.
    """
    read = [read_scored_folder(path) for path in folders]
    runs = dict(zip(names_of(read, names), read, strict=True))
    check_comparable(read)
    benchmark, title = read[0].scores["benchmark"], title_of(runs)
    if published is not None and benchmark != "wider_face":
        raise InputError(f"published= are curves of WIDER FACE, these are of {benchmark}; leave it out")
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
    check_values(
        options,
        ("page or column", ("page", "column").__contains__, "layout"),
        ("linear or log", ("linear", "log").__contains__, "scale"),
        ("a number above 0, or null for the whole curve", lambda number: number > 0, "max_false_positives"),
    )
    # A single word is a list of one.
    scores, names, published = (
        None
        if (value := options[key]) is None
        else [str(item) for item in (value if isinstance(value, list) else [value])]
        for key in ("scores", "names", "published")
    )
    written = plot_scores(
        [Path(text) for text in scores or []], Path(str(options["out"])), names=names, published=published,
        layout=options["layout"], max_false_positives=options["max_false_positives"], scale=options["scale"],
    )  # fmt: skip
    print(f"written: {' and '.join(str(path) for path in written)}")
    return 0
