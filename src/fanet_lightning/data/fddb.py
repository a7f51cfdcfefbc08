"""FDDB in its official layout, a set to test on.

::

    ROOT/originalPics/2002/08/11/big/img_591.jpg
    ROOT/FDDB-folds/FDDB-fold-01.txt, FDDB-fold-01-ellipseList.txt, … 10
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fanet_lightning.data.records import Boxes, ImageRecord
from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    from fanet_lightning.scoring.fddb_benchmark import FddbBenchmark
    from fanet_lightning.scoring.fddb_ground_truth import FddbGroundTruth

FOLDS_FOLDER = "FDDB-folds"
IMAGES_FOLDER = "originalPics"
WAYS_ON = "get FDDB (http://vis-www.cs.umass.edu/fddb/) and set data.root"


class FddbSource:
    """The images of FDDB with the boxes around their ellipses.

    Args:
        root: the folder that holds ``originalPics``.
        val: ``images``, a list of image names, or None for all of them.
        ground_truth: folder of the folds; by default ``root/FDDB-folds``.
        image_sizes: JSON file with the images' width and height; by default they are read from the images.
        ellipses: what happens to detections before they are scored, see
            :class:`~fanet_lightning.scoring.fddb_benchmark.FddbBenchmark`.
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
        self.root = Path(root)
        images = {"images": None, **(val or {})}["images"]
        self._images = None if images is None else Path(images)
        self._folds = self.root / FOLDS_FOLDER if ground_truth is None else Path(ground_truth)
        self._image_sizes = None if image_sizes is None else Path(image_sizes)
        self._ellipses = ellipses
        self._truth: FddbGroundTruth | None = None

    def prepare(self) -> None:
        """Nothing to do: the images are there, or reading says what is missing."""

    def check(self, train: bool = True) -> None:
        """Read all annotations and look for every image.

        Raises:
            InputError: what :meth:`val` says; with ``train``, that FDDB is not trained on.
        """
        if train:
            self.train()
        self.val()

    def train(self) -> list[ImageRecord]:
        """
        Raises:
            InputError: always: FDDB is a test set.
        """
        raise InputError("data=fddb is a set to test on; train on data=wider_face")

    def val(self) -> list[ImageRecord]:
        """All images, sorted by image id; boxes are cut to the image.

        Raises:
            InputError: images or annotations that are missing or malformed.
        """
        truth = self.ground_truth()
        paths = [self.root / IMAGES_FOLDER / f"{image_id}.jpg" for image_id in truth.image_ids]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(paths)} images of FDDB are missing, the first is {missing[0]}; "
                "complete the folder, or name those at hand with data.val.images=LIST"
            )
        records = []
        for image_id, path, ellipses, size_wh in zip(
            truth.image_ids, paths, truth.ellipses, truth.sizes_wh, strict=True
        ):
            inside = np.clip(bounding_boxes(ellipses), 0, np.concatenate([size_wh, size_wh]))
            boxes: Boxes = inside.astype(np.float32)
            usable = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            records.append(ImageRecord(image_id, path, boxes[usable], ignored_xyxy=boxes[~usable]))
        return records

    def ground_truth(self) -> "FddbGroundTruth":
        """The ellipses of exactly the images of :meth:`val`, in their order.

        Raises:
            InputError: see :func:`~fanet_lightning.scoring.fddb_ground_truth.read_fddb_ground_truth`.
        """
        if self._truth is None:
            from fanet_lightning.scoring.fddb_ground_truth import read_fddb_ground_truth

            images = self.root / IMAGES_FOLDER
            if not images.is_dir():
                raise InputError(
                    f"no FDDB here: {images} is no folder (expected {images}/YYYY/MM/DD/big/img_N.jpg); {WAYS_ON}"
                )
            truth = read_fddb_ground_truth(
                self._folds,
                images=self._images,
                image_sizes=self._image_sizes,
                images_root=images if self._image_sizes is None else None,
            )
            self._truth = truth.select(sorted(truth.image_ids))
        return self._truth

    def benchmark(self) -> "FddbBenchmark":
        """The benchmark that scores these images.

        Raises:
            InputError: an unknown ``ellipses``.
        """
        from fanet_lightning.scoring.fddb_benchmark import FddbBenchmark

        images_root = self.root / IMAGES_FOLDER if self._image_sizes is None else None
        return FddbBenchmark(self._ellipses, self._image_sizes, images_root)


def bounding_boxes(ellipses: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The boxes ``xyxy`` around ellipses ``major minor angle cx cy``, (F, 5) → (F, 4), not cut to any image."""
    major, minor, angle, x, y = np.asarray(ellipses, np.float64).reshape(-1, 5).T
    half_width = np.hypot(major * np.cos(angle), minor * np.sin(angle))
    half_height = np.hypot(major * np.sin(angle), minor * np.cos(angle))
    return np.column_stack([x - half_width, y - half_height, x + half_width, y + half_height])
