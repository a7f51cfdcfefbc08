"""Groups of faces that share a height, a label or an event: the parts that a score is broken down into.

A group is scored as the official tool scores a setting: every face outside it is not counted, so a row whose best face
lies outside is no proposal (:mod:`wider_face`). What remains are the rows on no face. Nobody can say whether such a
false alarm is a blurred one, so it counts against every group that it could belong to. Its event and its height are
known: by event only the rows of that event's images count, by height only those of that height, as COCO has it for its
areas.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.scoring.ground_truth import ATTRIBUTE_VALUES, GroundTruth

# Height of the box in pixels of the original image, [low, high): the sides of the network's anchors, and the 10 px
# below which WIDER's settings hold hardly a face.
HEIGHT_EDGES = (10, 16, 32, 64, 128, 256)
# Yang et al., WIDER FACE: A Face Detection Benchmark, CVPR 2016, section 3.2: small, medium and large faces.
SCALES = {"small": (10.0, 50.0), "medium": (50.0, 300.0), "large": (300.0, np.inf)}
LABELS = ("blur", "occlusion", "pose", "expression", "illumination")
ATTRIBUTES = ("all", "height", "scale", *LABELS, "event")
VALID = "valid"


@dataclass(frozen=True, eq=False)
class Group:
    """Faces that share a value of an attribute, and the rows on no face that count against them.

    ``attribute`` one of :data:`ATTRIBUTES`; ``value`` one of its values: "heavy", "10-16", "0--Parade".
    ``faces``     (F,) bool over the faces of all images, packed image by image.
    ``images``    (N,) bool, rows on no face of other images do not count; None: all do.
    ``heights``   [low, high) pixels, rows on no face of other heights do not count; None: all do.
    """

    attribute: str
    value: str
    faces: npt.NDArray[np.bool_]
    images: npt.NDArray[np.bool_] | None = None
    heights: tuple[float, float] | None = None


def attribute_groups(ground_truth: GroundTruth, within: str = "hard") -> list[Group]:
    """All groups, those without a face too; the first, "all", is the setting itself.

    Args:
        ground_truth: attributes without labels, and events where there is but one, give no group (:func:`left_out`).
        within: a setting of ``ground_truth``, or "valid": every face that has a width and a height and is not
            flagged invalid.

    Raises:
        InputError: no such setting.
    """
    return list(_groups(ground_truth, faces_within(ground_truth, within)))


def faces_within(ground_truth: GroundTruth, within: str) -> npt.NDArray[np.bool_]:
    """(F,) the faces that are broken down, packed over all images.

    Raises:
        InputError: no such setting.
    """
    nothing = np.zeros(0, np.bool_)
    if within in ground_truth.counted:
        return np.concatenate([nothing, *ground_truth.counted[within]])
    if within != VALID:
        choices = ", ".join([*ground_truth.counted, VALID])
        raise InputError(f"attributes within={within} is no setting of the ground truth; choose one of {choices}")
    # WIDER marks an image without a face by a box of zeros.
    sides = np.concatenate([np.empty((0, 4)), *ground_truth.boxes_xywh])[:, 2:]
    valid: npt.NDArray[np.bool_] = np.all(sides > 0, axis=1)
    if "invalid" in ground_truth.attributes:
        valid = valid & np.concatenate([nothing, *(own == 0 for own in ground_truth.attributes["invalid"])])
    return valid


def left_out(ground_truth: GroundTruth, within: str = "hard") -> tuple[str, ...]:
    """One line per thing that the ground truth cannot tell."""
    lines = [f"{name}: no labels in the ground truth" for name in LABELS if name not in ground_truth.attributes]
    if len(set(_events(ground_truth))) < 2:
        lines.append("event: all images are of one")
    if within == VALID and within not in ground_truth.counted and "invalid" not in ground_truth.attributes:
        lines.append("invalid: no labels in the ground truth, so every face counts as valid")
    return tuple(lines)


def image_of_face(ground_truth: GroundTruth) -> npt.NDArray[np.int64]:
    """(F,) index of the image of each face, packed over all images."""
    faces = np.array([len(boxes) for boxes in ground_truth.boxes_xywh], np.int64)
    return np.repeat(np.arange(len(faces)), faces)


def _groups(ground_truth: GroundTruth, within: npt.NDArray[np.bool_]) -> Iterator[Group]:
    height = np.concatenate([np.empty((0, 4)), *ground_truth.boxes_xywh])[:, 3]
    yield Group("all", "all", within)
    for low, high in pairwise((-np.inf, *HEIGHT_EDGES, np.inf)):
        yield Group("height", _bin_name(low, high), within & (height >= low) & (height < high), heights=(low, high))
    for name, (low, high) in SCALES.items():
        yield Group("scale", name, within & (height >= low) & (height < high), heights=(low, high))
    for attribute in LABELS:
        if attribute in ground_truth.attributes:
            labels = np.concatenate([np.zeros(0, np.int8), *ground_truth.attributes[attribute]])
            for label, name in enumerate(ATTRIBUTE_VALUES[attribute]):
                yield Group(attribute, name, within & (labels == label))
    events = _events(ground_truth)
    distinct = sorted(set(events), key=_by_number)
    if len(distinct) > 1:
        place = {event: number for number, event in enumerate(distinct)}
        event_of_image = np.array([place[event] for event in events])
        event_of_face = event_of_image[image_of_face(ground_truth)]
        for number, event in enumerate(distinct):
            yield Group("event", event, within & (event_of_face == number), event_of_image == number)


def _bin_name(low: float, high: float) -> str:
    if np.isinf(low):
        return f"<{high:g}"
    return f">={low:g}" if np.isinf(high) else f"{low:g}-{high:g}"


def _events(ground_truth: GroundTruth) -> list[str]:
    return [image_id.partition("/")[0] for image_id in ground_truth.image_ids]


def _by_number(event: str) -> tuple[int, str]:
    # WIDER numbers its events: "2--Demonstration" stands before "10--People_Marching".
    number = event.partition("--")[0]
    return (int(number) if number.isdecimal() else -1), event
