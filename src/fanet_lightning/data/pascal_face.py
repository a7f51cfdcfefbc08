"""PASCAL face and AFW on disk: label file and images → records.

::

    ROOT/images/<name>.jpg           or ROOT/JPEGImages, ROOT/testimages, or ROOT itself: the first folder that exists
    ROOT/<official label file>       or ROOT/annotations/<official label file>, or ``ground_truth``

Boxes are those of the file, without a shift. Both sets are for testing alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fanet_lightning.data.records import ImageRecord
from fanet_lightning.errors import InputError
from fanet_lightning.scoring.pascal_face_annotations import AFW, PASCAL_FACE, Release, read_annotations
from fanet_lightning.scoring.pascal_face_sets import PascalFaceGroundTruth

if TYPE_CHECKING:
    from fanet_lightning.scoring.pascal_face_benchmark import PascalFaceBenchmark

# JPEGImages is PASCAL VOC's folder, testimages AFW's.
IMAGE_FOLDERS = ("images", "JPEGImages", "testimages")


class PascalFaceSource:
    """PASCAL face in the official layout.

    Args:
        root: the folder of the images.
        labels: "corrected" or "original".
        ground_truth: label file or the folder that holds it; by default looked for under ``root``.
        images: list that restricts everything to its images.
        alignment: of :meth:`benchmark`.

    Raises:
        InputError: other labels.
    """

    name: str = "pascal_face"
    releases: ClassVar[Mapping[str, Release]] = PASCAL_FACE

    def __init__(
        self,
        root: Path | str,
        labels: str = "corrected",
        ground_truth: Path | str | None = None,
        images: Path | str | None = None,
        alignment: bool = True,
    ) -> None:
        if labels not in self.releases:
            raise InputError(f"data.labels={labels} is not known; choose {' or '.join(self.releases)}")
        self.root = Path(root)
        self._release = self.releases[labels]
        self._alignment = alignment
        self._annotations = None if ground_truth is None else Path(ground_truth)
        self._images = None if images is None else Path(images)
        self._read: PascalFaceGroundTruth | None = None
        self._records: list[ImageRecord] | None = None

    def prepare(self) -> None:
        """Nothing to do: the images are there, or reading says what is missing."""

    def check(self, train: bool = True) -> None:
        """Read the labels and look for every image, so that whatever is missing is said before any work starts.

        Raises:
            InputError: see :meth:`val`; with ``train`` always, see :meth:`train`.
        """
        if train:
            self.train()
        self.val()

    def train(self) -> list[ImageRecord]:
        """
        Raises:
            InputError: always; these images are for testing.
        """
        raise InputError(f"data={self.name} is for testing alone and has no training part; train on data=wider_face")

    def val(self) -> list[ImageRecord]:
        """One record per image, sorted: flagged faces and boxes without area are ignored, small faces are not.

        Raises:
            InputError: labels that cannot be read, images that are not on disk.
        """
        if self._records is None:
            ground_truth = self.ground_truth()
            self._records = _records(ground_truth, self._image_folder(ground_truth))
        return self._records

    def ground_truth(self) -> PascalFaceGroundTruth:
        """The faces of the images of :meth:`val`, in their order.

        Raises:
            InputError: see :func:`fanet_lightning.scoring.pascal_face_annotations.read_annotations`.
        """
        if self._read is None:
            self._read = read_annotations(self._label_file(), self._release, self._images)
        return self._read

    def benchmark(self) -> "PascalFaceBenchmark":
        """What scores detections on these images, by the same labels."""
        from fanet_lightning.scoring.pascal_face_benchmark import PascalFaceBenchmark

        return PascalFaceBenchmark(self._release.labels, self._alignment)

    def _label_file(self) -> Path:
        if self._annotations is not None:
            return self._annotations
        candidates = [folder / self._release.file_name for folder in (self.root, self.root / "annotations")]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise InputError(
            f"no labels here: neither {candidates[0]} nor {candidates[1]} exists; put face-eval's file there, or "
            "set data.ground_truth"
        )

    def _image_folder(self, ground_truth: PascalFaceGroundTruth) -> Path:
        folders = [self.root / name for name in IMAGE_FOLDERS]
        folder = next((folder for folder in folders if folder.is_dir()), self.root)
        if not folder.is_dir():
            raise InputError(f"data.root={self.root} is no folder; give the folder of the images")
        present = {entry.name for entry in folder.iterdir()}
        missing = [name for name in ground_truth.file_names if name not in present]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(ground_truth.file_names)} images are missing, the first is "
                f"{folder / missing[0]}; complete the folder, or name those at hand with data.images=LIST"
            )
        return folder


class AfwSource(PascalFaceSource):
    """AFW in the official layout; otherwise as :class:`PascalFaceSource`."""

    name = "afw"
    releases = AFW

    def benchmark(self) -> "PascalFaceBenchmark":
        from fanet_lightning.scoring.pascal_face_benchmark import AfwBenchmark

        return AfwBenchmark(self._release.labels, self._alignment)


def _records(ground_truth: PascalFaceGroundTruth, folder: Path) -> list[ImageRecord]:
    records = []
    for image_id, file_name, boxes, flagged in zip(
        ground_truth.image_ids, ground_truth.file_names, ground_truth.boxes_xyxy, ground_truth.flagged, strict=True
    ):
        boxes_xyxy = boxes.astype(np.float32)
        usable = ~flagged & (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
        records.append(ImageRecord(image_id, folder / file_name, boxes_xyxy[usable], {}, boxes_xyxy[~usable]))
    return records
