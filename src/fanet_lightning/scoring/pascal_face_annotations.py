"""The official label files of PASCAL face and AFW, as face-eval ships them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.image_lists import read_image_list
from fanet_lightning.scoring.pascal_face_sets import Float, PascalFaceGroundTruth


@dataclass(frozen=True)
class Release:
    """An official label file. ``variable`` is what it holds, ``columns`` those of its boxes, ``faces`` those counted.

    Six columns are x1 y1 x2 y2, one that is not used, and the ignore flag. Four are x1 y1 x2 y2, in ``anno`` as
    [[x1, y1], [x2, y2]].
    """

    labels: str
    file_name: str
    variable: str
    columns: int
    images: int
    faces: int


PASCAL_FACE: Mapping[str, Release] = {
    "corrected": Release(
        "corrected", "Annotations_Face_PASCALLayout_large_fixed.mat", "Annotations", 6, images=851, faces=1341
    ),
    "original": Release(
        "original", "Annotations_Face_PASCALLayout_large.mat", "Annotations", 4, images=851, faces=1331
    ),
}
AFW: Mapping[str, Release] = {
    "corrected": Release("corrected", "new_annotations_AFW.mat", "Annotations", 6, images=205, faces=473),
    "original": Release("original", "anno2.mat", "anno", 4, images=205, faces=468),
}


def image_key(name: str) -> str:
    """``2008_003880.jpg`` → ``2008_003880``: what face-eval knows an image by, the name up to the first dot.

    Folders before it, with either slash, do not count.
    """
    return name.replace("\\", "/").rpartition("/")[2].partition(".")[0]


def read_annotations(path: Path, release: Release, images: Path | None = None) -> PascalFaceGroundTruth:
    """Read a label file; images come sorted.

    A file in the layout of ``release`` with another number of images or faces is read and gives a warning: scores on
    it do not compare with published ones.

    Args:
        path: the file, under any name, or a folder that holds it under the official one.
        release: which labels it should hold.
        images: list (:mod:`fanet_lightning.image_lists`) that restricts everything to its images.

    Raises:
        InputError: a missing or damaged file, the layout of another release, an image twice, a listed image that is not
            in the file.
    """
    path = path / release.file_name if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"ground truth: there is no {path}; give face-eval's {release.file_name} or the folder that holds it"
        )
    content = load_mat(path, ())
    if release.variable not in content:
        raise InputError(_other(path, release, f"holds no '{release.variable}'"))
    try:
        rows = _rows_of_anno(content["anno"]) if release.variable == "anno" else _rows(content["Annotations"])
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(_other(path, release, f"has not their layout ({first_line(error)})")) from error
    faces: dict[str, tuple[str, Float]] = {}
    for name, boxes in rows:
        if len(boxes) and boxes.shape[1] != release.columns:
            raise InputError(_other(path, release, f"has boxes of {boxes.shape[1]} columns, not {release.columns}"))
        if not np.isfinite(boxes).all():
            raise InputError(f"{path}: a box of {name} is not finite; fetch the official file")
        if image_key(name) in faces:
            raise InputError(f"{path}: image '{image_key(name)}' stands there twice; fetch the official file")
        faces[image_key(name)] = name, boxes if len(boxes) else np.empty((0, release.columns))
    if not faces:
        raise InputError(f"{path} holds no image; fetch the official file")
    image_ids = tuple(sorted(faces))
    own = [faces[image_id][1] for image_id in image_ids]
    whole = _checked(
        path,
        release,
        PascalFaceGroundTruth(
            image_ids,
            [boxes[:, :4] for boxes in own],
            [boxes[:, 5] != 0 if release.columns == 6 else np.zeros(len(boxes), np.bool_) for boxes in own],
            tuple(faces[image_id][0] for image_id in image_ids),
            release.labels,
            frozenset(image_ids),
        ),
    )
    return whole if images is None else whole.select(_listed(images, whole))


def load_mat(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The variables of a MATLAB file.

    Raises:
        InputError: a file that is missing or damaged, or lacks one of ``names``.
    """
    # Half of the start-up time of a score, and --help needs none of it.
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(str(path), appendmat=False)
    except Exception as error:  # scipy lets zlib, struct, index and value errors of a damaged file through
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise InputError(f"{path} is not a readable .mat file ({reason}); fetch it again") from error
    absent = [name for name in names if name not in content]
    if absent:
        raise InputError(f"{path}: there is no variable '{absent[0]}' in it; give the file that has it")
    return content


def _rows(annotations: Any) -> list[tuple[str, Float]]:
    """Image name and boxes (F, 4 or 6). Stored as uint8 and the like, whose differences overflow: float64 first."""
    found = []
    for image in np.asarray(annotations).ravel():
        objects = np.asarray(image["objects"])
        boxes = objects.astype(np.float64)
        found.append((_name(image["imgname"]), boxes if boxes.ndim == 2 and objects.size else np.empty((0, 0))))
    return found


def _rows_of_anno(anno: Any) -> list[tuple[str, Float]]:
    """AFW's first label file: a row of cells per image, the name and then a cell of [[x1, y1], [x2, y2]] per face."""
    found = []
    for image in np.atleast_2d(anno):
        boxes = [np.asarray(cell).astype(np.float64).reshape(4) for cell in np.asarray(image[1]).ravel()]
        found.append((_name(image[0]), np.array(boxes).reshape(-1, 4)))
    return found


def _name(cell: Any) -> str:
    return str(np.asarray(cell).ravel()[0])


def _checked(path: Path, release: Release, whole: PascalFaceGroundTruth) -> PascalFaceGroundTruth:
    """The same, with a warning where the counts are not the official ones."""
    counts = len(whole.image_ids), whole.faces
    for other in (*PASCAL_FACE.values(), *AFW.values()):
        if counts == (other.images, other.faces):
            if other is not release:
                raise InputError(_other(path, release, f"holds the faces of {other.file_name}"))
            return whole
    warning = (
        f"{path.name} has {counts[0]:,} images and {counts[1]:,} faces that count, the official {release.file_name} "
        f"{release.images:,} and {release.faces:,}; the scores do not compare with published ones"
    )
    return replace(whole, warnings=(warning,))


def _listed(path: Path, whole: PascalFaceGroundTruth) -> list[str]:
    known = set(whole.image_ids)
    listed = [(number, image_key(name.replace("\\", "/").rpartition("/")[2])) for number, name in read_image_list(path)]
    for number, image_id in listed:
        if image_id not in known:
            raise InputError(
                f"{path}:{number}: '{image_id}' is not in the ground truth; write the image's name as there"
            )
    if len({image_id for _, image_id in listed}) < len(listed):
        raise InputError(f"{path} names an image twice; keep one of the lines")
    return [image_id for _, image_id in listed]


def _other(path: Path, release: Release, reason: str) -> str:
    return (
        f"{path} is not {release.file_name} ({release.labels} labels): it {reason}; "
        "give that file, or choose the labels that this one holds"
    )
