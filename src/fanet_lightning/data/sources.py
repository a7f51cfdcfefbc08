"""Where records and ground truth come from: WIDER FACE on disk, drawn faces in the same layout, sets to test on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fanet_lightning.data.box_checks import warn_of_odd_boxes
from fanet_lightning.data.fddb import FddbSource
from fanet_lightning.data.folder import FolderSource
from fanet_lightning.data.pascal_face import AfwSource, PascalFaceSource
from fanet_lightning.data.records import ImageRecord, check_apart
from fanet_lightning.data.wider_face import WAYS_ON, default_annotations, fetch_command, listed_path, load_wider_face
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable
from fanet_lightning.scoring.ground_truth import GROUND_TRUTH_FOLDERS, GroundTruth, read_ground_truth

if TYPE_CHECKING:
    from fanet_lightning.data.inventory import Inventory
    from fanet_lightning.scoring.benchmark import Benchmark
    from fanet_lightning.scoring.wider_face_benchmark import WiderFaceBenchmark


class FaceSource(Protocol):
    """What a :class:`~fanet_lightning.data.datamodule.FaceDataModule` reads."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def prepare(self) -> None:
        """Write or fetch what is needed; called on one process per machine, and may be called again."""

    def check(self, train: bool = True) -> None:
        """Say whatever is missing or malformed before any work starts; ``train``: of the training part too.

        Raises:
            InputError: in one line, what to do.
        """

    def train(self) -> list[ImageRecord]: ...

    def val(self) -> list[ImageRecord]:
        """The validation records, sorted by image id."""

    def ground_truth(self) -> Any:
        """The faces of exactly the images of :meth:`val`, in their order, as :meth:`benchmark` takes them."""

    def benchmark(self) -> "Benchmark[Any]":
        """What scores detections on these images."""


class WiderFaceSource:
    """WIDER FACE in the official layout (:mod:`fanet_lightning.data.wider_face`).

    Args:
        root: the folder that holds ``WIDER_train``, ``WIDER_val``.
        train: ``split`` and ``images`` (a list of image names within the split, or None for all of it) to train on.
        val: the same to validate on. Both may name the same split with lists that share no image.
        annotations: folder or official zip; by default looked for under ``root``.
        ground_truth: folder of the official evaluation's ``.mat`` files; by default :data:`GROUND_TRUTH_FOLDERS`
            under ``root``.
    """

    def __init__(
        self,
        root: Path | str,
        train: Mapping[str, Any] | None = None,
        val: Mapping[str, Any] | None = None,
        annotations: Path | str | None = None,
        ground_truth: Path | str | None = None,
    ) -> None:
        self.root = Path(root)
        self._train = {"split": "train", "images": None, **(train or {})}
        self._val = {"split": "val", "images": None, **(val or {})}
        self._annotations = None if annotations is None else Path(annotations)
        self._ground_truth = None if ground_truth is None else Path(ground_truth)
        self._val_records: list[ImageRecord] | None = None

    name = "wider_face"

    @property
    def train_split(self) -> str:
        return str(self._train["split"])

    @property
    def val_split(self) -> str:
        return str(self._val["split"])

    def prepare(self) -> None:
        """Nothing to do: the images are there, or reading says what is missing."""

    def check(self, train: bool = True) -> None:
        """Read all annotations, so that whatever is missing or malformed is said before any work starts.

        Args:
            train: the training part too, not only the validation one.

        Raises:
            InputError: see :func:`load_wider_face`.
        """
        parts = [self.train()] if train else []
        self.ground_truth()
        warn_of_odd_boxes([*parts, self.val()], "x y w h in pixels")

    def train(self) -> list[ImageRecord]:
        """
        Raises:
            InputError: see :func:`load_wider_face`; or an image is trained and validated on.
        """
        records = self._load(self._train)
        if self._train["split"] == self._val["split"]:
            check_apart({record.image_id for record in records}, {record.image_id for record in self.val()})
        return records

    def val(self) -> list[ImageRecord]:
        if self._val_records is None:
            self._val_records = sorted(self._load(self._val), key=lambda record: record.image_id)
        return self._val_records

    def ground_truth(self) -> GroundTruth:
        """Easy, medium and hard of the official files; without them one setting, ``all``, with every usable face."""
        records = self.val()
        folder = self._ground_truth_folder()
        if folder is None:
            return all_usable_faces(records)
        try:
            return read_ground_truth(folder).select([record.image_id for record in records])
        except InputError:
            raise
        except ValueError as error:
            raise InputError(
                f"{folder} does not fit the validation images: {error}; name the folder that does"
            ) from error

    def lacking_ground_truth(self) -> str | None:
        """Why :meth:`ground_truth` has not the official easy, medium and hard, and what to do; None where it has.

        Nor is anything lacking on another split than val: the official files are about that one.
        """
        if self._val["split"] != "val" or self._ground_truth_folder() is not None:
            return None
        where = " or ".join(str(self.root / name) for name in GROUND_TRUTH_FOLDERS)
        return (
            "easy, medium and hard could not be computed: the official .mat files (wider_easy_val.mat …) are not in "
            f"{where}; get them with {fetch_command(self.root, 'ground_truth')}, or give data.ground_truth=DIR. "
            "'all' counts every usable face"
        )

    def benchmark(self) -> "WiderFaceBenchmark":
        from fanet_lightning.scoring.wider_face_benchmark import WiderFaceBenchmark

        return WiderFaceBenchmark()

    def inventories(self) -> "list[Inventory]":
        """The labels of the training and the validation part exactly as written, see :mod:`data.inventory`.

        Raises:
            InputError: there are no labels, or no images of either part.
        """
        from fanet_lightning.data.formats.wider_splits import split_inventory

        parts = {"train": self._train, "val": self._val}
        folders = [self.root / f"WIDER_{part['split']}" / "images" for part in parts.values()]
        if not any(folder.is_dir() for folder in folders):
            raise InputError(f"no WIDER FACE here: {folders[0]} and {folders[1]} are no folders; {WAYS_ON}")
        source = self._annotations or default_annotations(self.root)
        if not source.exists():
            raise InputError(f"no WIDER FACE annotations here: {source} does not exist; {WAYS_ON}")
        return [
            split_inventory(
                name, self.root, part["split"], source,
                images=None if part["images"] is None else listed_path(Path(part["images"]), self.root),
                with_unlabelled=name == "train" or self._train["split"] != self._val["split"],
            )
            for name, part in parts.items()
        ]  # fmt: skip

    def _ground_truth_folder(self) -> Path | None:
        if self._ground_truth is not None:
            return self._ground_truth
        if self._val["split"] != "val":  # the official files are about the val split
            return None
        folders = (self.root / name for name in GROUND_TRUTH_FOLDERS)
        return next((folder for folder in folders if folder.is_dir()), None)

    def _load(self, part: Mapping[str, Any]) -> list[ImageRecord]:
        images = None if part["images"] is None else Path(part["images"])
        return load_wider_face(self.root, part["split"], images=images, annotations=self._annotations)


def all_usable_faces(records: list[ImageRecord]) -> GroundTruth:
    """Usable faces count; ignored ones stay in, so that a detection on one is no false positive."""
    boxes_xywh, counted = [], []
    for record in records:
        boxes = np.concatenate([record.boxes_xyxy, record.ignored_xyxy]).astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        boxes_xywh.append(boxes)
        counted.append(np.arange(len(boxes)) < len(record.boxes_xyxy))
    return GroundTruth(tuple(record.image_id for record in records), boxes_xywh, {"all": counted})


class SyntheticSource:
    """Drawn faces (:func:`fanet_lightning.data.synthetic.prepare_synthetic`), written once and read as WIDER FACE.

    ``options`` go to ``prepare_synthetic`` as they are.
    """

    def __init__(
        self, root: Path | str, train_images: int = 400, val_images: int = 120, seed: int = 0, **options: Any
    ) -> None:
        self._root = Path(root)
        self._options = {"train_images": train_images, "val_images": val_images, "seed": seed, **options}
        self._wider: WiderFaceSource | None = None

    name = "synthetic"

    def prepare(self) -> None:
        self._prepared()

    def check(self, train: bool = True) -> None:
        """The set is made where it is missing; its parameters and its folder can be wrong.

        Raises:
            InputError: a parameter is out of range, or ``root`` cannot be written.
        """
        from fanet_lightning.data.synthetic import synthetic_parameters

        synthetic_parameters(**self._options)
        check_writable(self._root, "data.root")

    def train(self) -> list[ImageRecord]:
        return self._prepared().train()

    def val(self) -> list[ImageRecord]:
        return self._prepared().val()

    def ground_truth(self) -> GroundTruth:
        return self._prepared().ground_truth()

    def benchmark(self) -> "WiderFaceBenchmark":
        from fanet_lightning.scoring.wider_face_benchmark import WiderFaceBenchmark

        return WiderFaceBenchmark(name="synthetic", title="drawn faces")

    def inventories(self) -> "list[Inventory]":
        """As :meth:`WiderFaceSource.inventories`; the set is drawn where it is missing."""
        return self._prepared().inventories()

    def _prepared(self) -> WiderFaceSource:
        if self._wider is None:
            from fanet_lightning.data.synthetic import prepare_synthetic

            self._wider = WiderFaceSource(prepare_synthetic(self._root, **self._options))
        return self._wider


SOURCES: dict[str, Callable[..., FaceSource]] = {
    "wider_face": WiderFaceSource,
    "synthetic": SyntheticSource,
    "folder": FolderSource,
    "fddb": FddbSource,
    "pascal_face": PascalFaceSource,
    "afw": AfwSource,
}


def build_source(name: str, **options: Any) -> FaceSource:
    """The source of a ``data`` group of the configuration: its ``name``, the rest as arguments.

    Raises:
        InputError: an unknown name, or an argument that this source does not take.
    """
    if name not in SOURCES:
        raise InputError(f"data.name={name} is unknown; take {' or '.join(SOURCES)}")
    try:
        return SOURCES[name](**options)
    except TypeError as error:
        raise InputError(f"data={name}: {error}") from error
