"""Sources of images and ground truth: WIDER FACE, synthetic faces and, for testing alone, FDDB, PASCAL face, AFW."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from fanet_lightning.cli.config import own
from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import check_writable
from fanet_lightning.data.folder.parts import warn_of_odd_boxes
from fanet_lightning.data.folder.source import FolderSource
from fanet_lightning.data.records import ImageRecord, Inventory, check_apart, clean_record, refuse_missing
from fanet_lightning.data.synthetic.dataset import prepare_synthetic, synthetic_parameters
from fanet_lightning.data.wider_face import all_usable_faces, fetch_command, load_wider_face, split_inventory
from fanet_lightning.score.fddb.ground_truth import FOLDS_FOLDER, IMAGES_FOLDER, FddbGroundTruth, read_fddb_ground_truth
from fanet_lightning.score.fddb.regions import bounding_boxes
from fanet_lightning.score.pascal_face.benchmark import AfwBenchmark, PascalFaceBenchmark
from fanet_lightning.score.pascal_face.ground_truth import AFW, PASCAL_FACE, PascalFaceGroundTruth, read_annotations
from fanet_lightning.score.results import Benchmark
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.ground_truth import GROUND_TRUTH_FOLDERS, GroundTruth, read_ground_truth


@runtime_checkable
class FaceSource(Protocol):
    """What a :class:`~fanet_lightning.data.datamodule.FaceDataModule` reads."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def prepare(self) -> None:
        """Write or fetch what is needed; called on one process per machine, and may be called again."""
        return  # by default the images are there, or reading says what is missing

    def check(self, train: bool = True) -> None:
        """Say in one line (InputError) what is missing or malformed before any work starts; ``train``: in the training
        part too."""
        if train:
            self.train()
        self.val()

    def train(self) -> list[ImageRecord]: ...

    def val(self) -> list[ImageRecord]:
        """The validation records, sorted by image id."""

    def ground_truth(self) -> Any:
        """The faces of exactly the images of :meth:`val`, in their order, as :meth:`benchmark` takes them."""

    def benchmark(self) -> Benchmark[Any]:
        """What scores detections on these images."""


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


class _TestSet(FaceSource, Protocol):
    """What the sets for testing alone have in common."""

    _truth: Any

    def ground_truth(self) -> Any:
        return self._truth

    def train(self) -> list[ImageRecord]:
        raise InputError(f"data={self.name} is for testing alone and has no training part; train on data=wider_face")

    def _there(self, paths: list[Path], key: str) -> list[Path]:
        remedy = f"complete data.root, or name those at hand with {key}=LIST"
        refuse_missing([path for path in paths if not path.is_file()], len(paths), f"data={self.name}", remedy)
        return paths


class FddbSource(_TestSet):
    """The images of FDDB with the boxes around their ellipses, cut to the image.

    ``root`` holds ``originalPics``. ``val``: ``images``, a list of image names, or None for all of them.
    ``ground_truth``: folder of the folds; by default ``root/FDDB-folds``. ``image_sizes``: JSON file with the images'
    width and height; by default read from the images. ``ellipses``: see
    :class:`~fanet_lightning.score.fddb.benchmark.FddbBenchmark`.
    """

    name = "fddb"

    def __init__(
        self,
        root: Path | str,
        val: Mapping[str, Any] | None = None,
        ground_truth: Path | str | None = None,
        image_sizes: Path | str | None = None,
        ellipses: Literal["as_given", "inscribed", "cross_fitted"] = "as_given",
    ) -> None:
        self.root, self._images = Path(root), _path((val or {}).get("images"))
        self._folds, self._image_sizes = _path(ground_truth) or self.root / FOLDS_FOLDER, _path(image_sizes)
        self._sizes_from = self.root / IMAGES_FOLDER if image_sizes is None else None
        self._ellipses = ellipses

    def val(self) -> list[ImageRecord]:
        truth = self.ground_truth()
        names = [f"{image_id}.jpg" for image_id in truth.image_ids]
        paths = self._there([self.root / IMAGES_FOLDER / name for name in names], "data.val.images")
        of_image = zip(truth.image_ids, paths, truth.ellipses, truth.sizes_wh, strict=True)
        return [
            clean_record(image_id, path, np.clip(bounding_boxes(ellipses), 0, [*size_wh, *size_wh]))
            for image_id, path, ellipses, size_wh in of_image
        ]

    @cached_property
    def _truth(self) -> FddbGroundTruth:
        images = self.root / IMAGES_FOLDER
        if not images.is_dir():
            raise InputError(
                f"no FDDB here: {images} is not there (expected YYYY/MM/DD/big/img_N.jpg in it); get FDDB "
                "(http://vis-www.cs.umass.edu/fddb/) and set data.root"
            )
        truth = read_fddb_ground_truth(
            self._folds, images=self._images, image_sizes=self._image_sizes, images_root=self._sizes_from
        )
        return truth.select(sorted(truth.image_ids))

    def benchmark(self) -> Benchmark[Any]:
        # scipy.optimize takes a second to import, and no other source needs it.
        from fanet_lightning.score.fddb.benchmark import FddbBenchmark

        return FddbBenchmark(self._ellipses, self._image_sizes, self._sizes_from)


class PascalFaceSource(_TestSet):
    """PASCAL face in the official layout: flagged faces and boxes without area are ignored, small faces are not.

    ``root``: folder of the images. ``labels``: "corrected" or "original". ``ground_truth``: label file or its folder;
    by default looked for under ``root``. ``images``: list that restricts everything to its images. ``alignment``: of
    :meth:`benchmark`.
    """

    name: str = "pascal_face"
    releases = PASCAL_FACE
    benchmarks: type[PascalFaceBenchmark] = PascalFaceBenchmark

    def __init__(
        self,
        root: Path | str,
        labels: str = "corrected",
        ground_truth: Path | str | None = None,
        images: Path | str | None = None,
        alignment: bool = True,
    ) -> None:
        check(labels in self.releases, f"data.labels={labels} is not known; choose {' or '.join(self.releases)}")
        self.root, self._images = Path(root), _path(images)
        self._release, self._alignment = self.releases[labels], alignment
        self._labels = [Path(ground_truth)] if ground_truth is not None else [self.root, self.root / "annotations"]

    def val(self) -> list[ImageRecord]:
        truth = self.ground_truth()
        folders = [self.root / name for name in ("images", "JPEGImages", "testimages")]  # the last two: VOC's, AFW's
        folder = next((folder for folder in folders if folder.is_dir()), self.root)
        paths = self._there([folder / name for name in truth.file_names], "data.images")
        return list(map(clean_record, truth.image_ids, paths, truth.boxes_xyxy, truth.flagged))

    @cached_property
    def _truth(self) -> PascalFaceGroundTruth:
        labels = next((path for path in self._labels if (path / self._release.file_name).is_file()), self._labels[0])
        return read_annotations(labels, self._release, self._images)

    def benchmark(self) -> PascalFaceBenchmark:
        return self.benchmarks(self._release.labels, self._alignment)


class AfwSource(PascalFaceSource):
    """AFW in the official layout; otherwise as :class:`PascalFaceSource`."""

    name = "afw"
    releases = AFW
    benchmarks = AfwBenchmark


class WiderFaceSource(FaceSource):
    """WIDER FACE in the official layout (:mod:`fanet_lightning.data.wider_face`).

    Args:
        root: the folder that holds ``WIDER_train``, ``WIDER_val``.
        train: ``split`` and ``images`` (a list of image names within the split, or None for all of it) to train on.
        val: the same to validate on. Both may name the same split with lists that share no image.
        annotations: folder or official zip; by default looked for under ``root``.
        ground_truth: folder of the official ``.mat`` files; by default :data:`GROUND_TRUTH_FOLDERS` under ``root``.
    """

    name = "wider_face"

    def __init__(
        self,
        root: Path | str,
        train: Mapping[str, Any] | None = None,
        val: Mapping[str, Any] | None = None,
        annotations: Path | str | None = None,
        ground_truth: Path | str | None = None,
    ) -> None:
        self._root, self._annotations, self._ground_truth = Path(root), _path(annotations), _path(ground_truth)
        given = {"train": train or {}, "val": val or {}}
        self._parts: dict[str, Any] = {part: {"split": part, "images": None, **own} for part, own in given.items()}
        self.train_split: str | None = self._parts["train"]["split"]
        self.val_split: str | None = self._parts["val"]["split"]
        self._read: dict[str, list[ImageRecord]] = {}  # once: a run checks its source, and then loads it

    @property
    def root(self) -> Path:
        return self._root

    def check(self, train: bool = True) -> None:
        parts = [self.train(), self.val()] if train else [self.val()]
        self.ground_truth()
        warn_of_odd_boxes(parts, "x y w h in pixels")

    def train(self) -> list[ImageRecord]:
        records = self._records("train")
        if self._parts["train"]["split"] == self._parts["val"]["split"]:
            check_apart({record.image_id for record in records}, {record.image_id for record in self.val()})
        return records

    def val(self) -> list[ImageRecord]:
        return sorted(self._records("val"), key=lambda record: record.image_id)

    def _records(self, part: str) -> list[ImageRecord]:
        if part not in self._read:
            self._read[part] = load_wider_face(self.root, **self._parts[part], annotations=self._annotations)
        return self._read[part]

    def ground_truth(self) -> GroundTruth:
        """Easy, medium and hard of the official files; without them one setting, ``all``, with every usable face."""
        records, folder = self.val(), self._ground_truth_folder()
        if folder is None:
            return all_usable_faces(records)
        truth = read_ground_truth(folder)
        try:
            return truth.select([record.image_id for record in records])
        except ValueError as error:
            raise InputError(f"{folder} does not fit the validation images: {error}") from error

    def _ground_truth_folder(self) -> Path | None:
        folders = [self.root / name for name in GROUND_TRUTH_FOLDERS] if self._parts["val"]["split"] == "val" else []
        return self._ground_truth or next((folder for folder in folders if folder.is_dir()), None)

    def lacking_ground_truth(self) -> str | None:
        """Why :meth:`ground_truth` has not easy, medium and hard, and what to do; None where it has, or not val."""
        if self._parts["val"]["split"] != "val" or self._ground_truth_folder() is not None:
            return None
        return (
            "easy, medium and hard could not be computed: the official .mat files (wider_easy_val.mat …) are not in "
            f"{self.root / GROUND_TRUTH_FOLDERS[0]}; get them with {fetch_command(self.root, 'ground_truth')}, or give "
            "data.ground_truth=DIR. 'all' counts every usable face"
        )

    def benchmark(self) -> WiderFaceBenchmark:
        return WiderFaceBenchmark()

    def inventories(self) -> list[Inventory]:
        """The labels of the parts whose images are there, exactly as written; InputError: no labels, or no images."""
        parts = self._parts
        present = {name: own for name, own in parts.items() if (self.root / f"WIDER_{own['split']}").is_dir()}
        inventories = [
            split_inventory(name, self.root, **own, annotations=self._annotations)
            for name, own in (present or parts).items()
        ]
        if len(present) == 2 and parts["train"]["split"] == parts["val"]["split"]:
            inventories[1].unlabelled.clear()  # the same folder's
        return inventories


class SyntheticSource(WiderFaceSource):
    """Synthetic faces, written when first asked for (``options``: of ``prepare_synthetic``), read as WIDER FACE."""

    name = "synthetic"

    def __init__(self, root: Path | str, train_images: int = 400, val_images: int = 120, **options: Any) -> None:
        super().__init__(root)
        self._options = {"train_images": train_images, "val_images": val_images, **options}
        # What a checkpoint was trained on and is scored on is told apart by the images' names alone.
        self.train_split = self.val_split = None

    @cached_property
    def root(self) -> Path:
        """The folder of this set, made where it is missing."""
        return prepare_synthetic(self._root, **self._options)

    def prepare(self) -> None:
        assert self.root

    def check(self, train: bool = True) -> None:
        """Refuse parameters out of range and a ``root`` that cannot be written; the set is not made yet."""
        synthetic_parameters(**self._options)
        check_writable(self._root, "data.root")

    def benchmark(self) -> WiderFaceBenchmark:
        return WiderFaceBenchmark(name="synthetic", title="synthetic faces")


_KNOWN: tuple[Any, ...] = (WiderFaceSource, SyntheticSource, FolderSource, FddbSource, PascalFaceSource, AfwSource)
SOURCES: dict[str, Callable[..., FaceSource]] = {source.name: source for source in _KNOWN}


def build_source(name: str, **options: Any) -> FaceSource:
    """The source of a ``data`` group of the configuration: its ``name``, the rest as arguments.

    With ``_target_`` an object of that class, a :class:`FaceSource`, which gets those of the options that it takes.
    """
    if options.get("_target_") is not None:
        found = own("data", options, object)
        if not isinstance(found, FaceSource):
            needed = "name, prepare, check, train, val, ground_truth and benchmark"
            raise InputError(f"data._target_={options['_target_']} is no source: it needs {needed}")
        return found
    check(name in SOURCES, f"data.name={name} is unknown; take {' or '.join(SOURCES)}")
    try:
        return SOURCES[name](**options)
    except TypeError as error:
        raise InputError(f"data={name}: {error}") from error
