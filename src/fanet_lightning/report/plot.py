"""Curves of scored folders in one figure: ``python -m fanet_lightning.plot scores=[DIR,DIR] out=DIR``. No torch."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fanet_lightning.report.figures import Layout
    from fanet_lightning.score.curves import Curve


TITLES = {
    "wider_face": "WIDER FACE", "synthetic": "drawn faces", "fddb": "FDDB", "pascal_face": "PASCAL face", "afw": "AFW",
    "coco": "COCO", "folder": "own data",
}  # fmt: skip
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
    """A folder and what its ``scores.json`` holds; ``scores`` is empty for somebody's FDDB curve files alone."""

    path: Path
    scores: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        return str(self.scores.get("benchmark", "fddb"))

    @property
    def protocol(self) -> str:
        return str(self.scores.get("protocol") or "not stated")

    @property
    def is_wider_val(self) -> bool:
        """Whether these are all images and faces of WIDER FACE val, so that the published curves compare."""
        scores = self.scores
        return (self.benchmark, scores.get("images"), scores.get("faces")) == (
            "wider_face", WIDER_VAL_IMAGES, WIDER_VAL_FACES,
        )  # fmt: skip

    def roc_files(self) -> dict[str, Path]:
        """``discrete`` and ``continuous`` → curve file in the official format, with whatever prefix.

        Raises:
            InputError: one is missing, or there are several.
        """
        files = {}
        for score, ending in ROC_FILES.items():
            found = sorted(path for path in self.path.glob(f"*{ending}") if not path.name.startswith("."))
            if len(found) > 1:
                raise InputError(
                    f"{self.path} holds {found[0].name} and {found[1].name}; give a folder with one of them"
                )
            if not found:
                raise InputError(f"{self.path / ending} is missing; score the predictions again")
            files[score] = found[0]
        return files


def read_scored_folder(path: Path) -> ScoredFolder:
    """``scores.json``, or nothing of it where there are but curve files of FDDB's program.

    Raises:
        InputError: neither is in it, or a ``scores.json`` that cannot be read or is no such thing.
    """
    file = path / "scores.json"
    if not file.exists() and any(path.glob(f"*{ROC_FILES['discrete']}")):
        return ScoredFolder(path, {})
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give a folder that score has written") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); score the predictions again") from error
    if not isinstance(content, dict) or content.get("benchmark") not in list(TITLES):
        raise InputError(f"{file} names no benchmark; give a folder that score or evaluate has written")
    for key, kind in (("images", int), ("images_of_benchmark", int), ("faces", dict), ("rules", dict)):
        # Older files lack some of them.
        if key in content and not isinstance(content[key], kind):
            raise InputError(f"{file}: {key} {_short(content[key])} is no such thing; score the predictions again")
    if "images" not in content:
        raise InputError(f"{file} does not say how many images there were; score the predictions again")
    return ScoredFolder(path, content)


def check_comparable(read: Sequence[ScoredFolder]) -> None:
    """Same benchmark, images, faces and rules. Of curve files alone only the benchmark is known.

    Raises:
        InputError: two folders that differ, with what they differ in.
    """
    if {"fddb"} < {folder.benchmark for folder in read} and any(not folder.scores for folder in read):
        bare = next(folder for folder in read if not folder.scores)
        other = next(folder for folder in read if folder.benchmark != "fddb")
        raise InputError(
            f"{bare.path} holds curves of FDDB and {other.path} of {TITLES[other.benchmark]}; plot them apart"
        )
    known = [folder for folder in read if folder.scores]
    for other in known[1:]:
        first = known[0]
        pairs = [(key, first.scores.get(key), other.scores.get(key)) for key in SAME]
        rules, other_rules = (folder.scores.get("rules", {}) for folder in (first, other))
        pairs += [(key, rules.get(key), other_rules.get(key)) for key in SAME_RULES]
        for key, here, there in pairs:
            if here != there:
                raise InputError(
                    f"{first.path} and {other.path} do not compare: {key} {_short(here)} and {_short(there)}; "
                    "plot them apart"
                )
        if not _same_images(first, other):
            raise InputError(
                f"{first.path} and {other.path} do not compare: as many images, but not the same ones; plot them apart"
            )


def _same_images(first: ScoredFolder, other: ScoredFolder) -> bool:
    """In whatever order; True also where one of them has kept no counts per image, which alone name the images."""
    import numpy as np

    names = []
    for folder in (first, other):
        try:
            with np.load(folder.path / "per_image.npz", allow_pickle=False) as arrays:
                names.append(sorted(arrays["image_ids"].tobytes().split(b"\n")))
        except Exception:  # numpy and zipfile raise a dozen kinds; the figure does not need this file
            return True
    return bool(names[0] == names[1])


def names_of(read: Sequence[ScoredFolder], names: Sequence[str] | None) -> list[str]:
    """A name for each folder: those given, else the folders' own with the protocol where it differs.

    Raises:
        InputError: another number of names than folders, an empty one, or the same name twice.
    """
    if names is not None:
        if len(names) != len(read):
            raise InputError(f"{len(names)} names for {len(read)} folders; give one for each, in their order")
        chosen = [str(name) for name in names]
        if not all(name.strip() for name in chosen):
            raise InputError(f"names={list(chosen)} has an empty name; a curve needs one")
    else:
        chosen = [_own_name(folder) for folder in read]
        if len(set(chosen)) < len(chosen):  # evaluations of several runs are all called that
            chosen = ["/".join(folder.path.resolve().parts[-2:]) for folder in read]
        if len({folder.protocol for folder in read if folder.scores}) > 1:
            chosen = [
                f"{name}, {folder.protocol if folder.protocol != 'not stated' else 'protocol not stated'}"
                for name, folder in zip(chosen, read, strict=True)
            ]
    repeated = [name for name, count in Counter(chosen).items() if count > 1]
    if repeated:
        raise InputError(f"'{repeated[0]}' names two folders; give names=[…], one for each")
    return chosen


def _own_name(folder: ScoredFolder) -> str:
    prefix = "" if folder.scores else folder.roc_files()["discrete"].name.removesuffix(ROC_FILES["discrete"])
    return prefix.strip("-_. ") or folder.path.resolve().name


def title_of(runs: Mapping[str, ScoredFolder]) -> str:
    """Benchmark, images, rules and protocol. Where protocols differ, each name with its own."""
    known = {name: folder for name, folder in runs.items() if folder.scores}
    if not known:
        return "FDDB, from curve files"
    first = next(iter(known.values()))
    scores = first.scores
    text = TITLES[first.benchmark] + (" val" if first.is_wider_val else "")
    images, whole = scores["images"], scores.get("images_of_benchmark", scores["images"])
    if first.benchmark == "wider_face" and "images_of_benchmark" not in scores:
        whole = max(whole, WIDER_VAL_IMAGES)
    text += f", {images:,} images" if images == whole else f" sample, {images:,} of {whole:,} images"
    rules = scores.get("rules", {})
    if rules.get("labels") not in (None, "corrected"):
        text += f", {rules['labels']} labels"
    if rules.get("alignment") is False:
        text += ", not aligned"
    if rules.get("ellipses") not in (None, "as_given"):
        text += f", ellipses {rules['ellipses']}"
    if len({folder.protocol for folder in known.values()}) == 1:
        return f"{text}, protocol {first.protocol}"
    return f"{text}, protocols: {', '.join(f'{name} {folder.protocol}' for name, folder in known.items())}"


def note_of(runs: Mapping[str, ScoredFolder]) -> str:
    """Names the runs of which nothing is known but their curves."""
    bare = [name for name, folder in runs.items() if not folder.scores]
    return f"From curve files, images and protocol not stated: {', '.join(bare)}" if bare else ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


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
        published: WIDER FACE methods, see :func:`fanet_lightning.report.figures.precision_recall_figure`.
        layout, max_false_positives, scale: see there and :func:`fanet_lightning.report.figures.roc_figure`.

    Returns:
        What was written.

    Raises:
        InputError: folders that cannot be read or do not compare, another number of names than folders, published
            curves beside another benchmark.
    """
    from fanet_lightning.report.figures import save_figure

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
    from fanet_lightning.report.figures import read_roc_file, roc_figure

    curves = {
        name: {score: read_roc_file(file) for score, file in folder.roc_files().items()}
        for name, folder in runs.items()
    }
    return roc_figure(curves, title_of(runs), max_false_positives=limit, scale=scale, note=note_of(runs), layout=layout)


def _precision_recall(runs: Mapping[str, ScoredFolder], published: Sequence[str] | None, layout: "Layout") -> "Figure":
    from fanet_lightning.report.figures import pascal_label, precision_recall_figure, wider_label

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
    from fanet_lightning.score.wider_face.benchmark import CURVES_FILE, read_curves

    path = folder.path / CURVES_FILE
    if folder.benchmark != "coco":
        return read_curves(path)
    from fanet_lightning.score.coco import read_coco_curves

    return read_coco_curves(path)


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("plot", argv, USAGE, required=["scores", "out"])
    if config is None:
        return 0
    from fanet_lightning.cli.config import plain
    from fanet_lightning.report.figures import WIDTHS_INCHES

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
