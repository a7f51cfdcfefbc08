"""Ground truth files: round trips, and the one line that each mistake gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.io import savemat

from fanet_lightning.score.wider_face.ground_truth import GroundTruth, read_ground_truth, write_ground_truth
from tests.score.helpers import IDS, invalid, refused


def small_ground_truth() -> GroundTruth:
    boxes = [np.array([[1.5, 2, 3, 4], [5, 6, -2, 8]]), np.empty((0, 4)), np.array([[9.0, 9, 300, 300]])]
    first = {"easy": [False, False], "medium": [True, False], "hard": [True, True]}
    nothing = np.zeros(0, np.bool_)
    return GroundTruth(IDS, boxes, {name: [np.array(own), nothing, np.array([True])] for name, own in first.items()})


def test_selection_keeps_order_and_refuses_strangers() -> None:
    part = small_ground_truth().select([IDS[2], IDS[0]])
    assert (part.image_ids, part.known_ids) == ((IDS[2], IDS[0]), IDS)
    assert [len(boxes) for boxes in part.boxes_xywh] == [1, 2]
    assert part.faces_per_setting == {"easy": 1, "medium": 2, "hard": 3}
    invalid("1 image ids are not in the ground truth, the first is 'x/y'", part.select, ["x/y"])


def test_ground_truth_mistakes(tmp_path: Path) -> None:
    refused(r"wider_face_val\.mat cannot be read \(No such file", read_ground_truth, tmp_path)
    ours, hard = small_ground_truth(), tmp_path / "wider_hard_val.mat"
    write_ground_truth(tmp_path, ours)
    whole = hard.read_bytes()
    hard.unlink()
    refused(r"wider_hard_val\.mat .*; give the folder", read_ground_truth, tmp_path)
    for length in range(0, len(whole) - 1, 41):
        hard.write_bytes(whole[:length])
        refused("wider_hard_val.mat", read_ground_truth, tmp_path)
    for content, reason in (
        ({"something": 1}, "'file_list'"),
        ({"file_list": np.arange(3), "gt_list": 0}, "not those"),
    ):
        savemat(hard, content)
        refused(rf"wider_hard_val\.mat cannot be read .*{reason}", read_ground_truth, tmp_path)
    # Files of two releases.
    more = replace(ours, boxes_xywh=[np.zeros((3, 4))] * 3, counted={"hard": [np.array([False, False, True])] * 3})
    for other, reason in ((ours.select(IDS[:2]), "its images are not those"), (more, "index 3 is out of bounds")):
        write_ground_truth(tmp_path / "other", other)
        (tmp_path / "other" / hard.name).replace(hard)
        refused(rf"wider_hard_val\.mat .*{reason}", read_ground_truth, tmp_path)


def labels_of(truth: GroundTruth) -> dict[str, list[list[int]]]:
    return {attribute: [own.tolist() for own in labels] for attribute, labels in truth.attributes.items()}


def test_official_ground_truth_survives_being_written(tmp_path: Path, shared_data: Path) -> None:
    official = read_ground_truth(shared_data / "wider_face" / "eval_gt")
    counts = {name: np.bincount(np.concatenate(own)).tolist() for name, own in official.attributes.items()}
    assert counts == {
        "blur": [5686, 10381, 23641],
        "expression": [39308, 400],
        "illumination": [37410, 2298],
        "invalid": [39123, 585],
        "occlusion": [23812, 7185, 8711],
        "pose": [38053, 1655],
    }
    write_ground_truth(tmp_path, official)
    again = read_ground_truth(tmp_path)
    assert again.image_ids == official.image_ids and labels_of(again) == labels_of(official)
    assert {own.dtype for labels in again.attributes.values() for own in labels} == {np.dtype(np.int8)}
    last = again.select(again.image_ids[:-3:-1])
    assert labels_of(last)["blur"] == labels_of(official)["blur"][:-3:-1]
    np.testing.assert_array_equal(np.concatenate(again.boxes_xywh), np.concatenate(official.boxes_xywh))
    for setting, masks in official.counted.items():
        np.testing.assert_array_equal(np.concatenate(again.counted[setting]), np.concatenate(masks))
