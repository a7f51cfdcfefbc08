"""Synthetic faces: the same bytes everywhere, boxes on what was drawn, WIDER's layout, and nothing half-made."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.synthetic import dataset as synthetic
from fanet_lightning.data.synthetic import scenes
from fanet_lightning.data.synthetic.dataset import SETTINGS, counts, prepare_synthetic
from fanet_lightning.data.synthetic.faces import Drawn, draw_head
from fanet_lightning.data.synthetic.people import Person, random_person
from fanet_lightning.data.synthetic.scenes import FaceTruth, Shot, draw_image
from fanet_lightning.data.wider_face import load_wider_face, read_annotations
from fanet_lightning.score.wider_face.ground_truth import read_ground_truth

SMALL = {"train_images": 5, "val_images": 4, "image_width": (200, 240), "image_height": (160, 200)}
PLAIN = Shot((1.0, 1.0, 1.0), 1.0, 0.0, 0, 0.0, 0.0, (0, 0), 90, False)


def files_of(folder: Path) -> dict[str, str]:
    """Path → digest; the header of a .mat file holds the time, so those are compared by content elsewhere."""
    return {
        str(path.relative_to(folder)): "" if path.suffix == ".mat" else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def jpegs_of(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in files_of(folder).items() if name.endswith(".jpg")}


def plain_person(height: float, center_xy: tuple[float, float], **changes: object) -> Person:
    """Sharp, upright, in plain light."""
    person = random_person(np.random.default_rng(3), center_xy, height, hardship=0.0)
    still = {"tilt": 0.0, "blur": 0.0, "haze": 0.0, "exposure": 1.0, "hair_style": "bald", "hand": 0, "beard": 0.0}
    return dataclasses.replace(person, **{**still, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sample() -> list[scenes.SyntheticImage]:
    return [draw_image(np.random.default_rng([0, 0, index])) for index in range(200)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_synthetic(tmp_path_factory.mktemp("synthetic"), **SMALL)


def test_the_same_bytes_everywhere_and_others_by_seed_and_split(prepared: Path, tmp_path: Path) -> None:
    again = prepare_synthetic(tmp_path, **SMALL)
    assert again.name == prepared.name and files_of(again) == files_of(prepared)
    truths = [read_ground_truth(folder / "eval_gt") for folder in (prepared, again)]
    assert truths[0].image_ids == truths[1].image_ids
    assert json.loads((prepared / "manifest.json").read_text())["val_faces"] == truths[1].faces_per_setting
    images, _ = read_annotations(prepared / "wider_face_split", "val")
    for number, boxes in enumerate(truths[0].boxes_xywh):
        assert np.array_equal(boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0))), images[number].boxes_xyxy)
        easy, medium, hard = (truths[0].counted[setting][number] for setting in ("easy", "medium", "hard"))
        assert not (easy & ~medium).any() and not (medium & ~hard).any()
    other_seed = prepare_synthetic(tmp_path, **{**SMALL, "seed": 1})
    assert len({*jpegs_of(prepared).values(), *jpegs_of(other_seed).values()}) == 18
    more = jpegs_of(prepare_synthetic(tmp_path, **{**SMALL, "val_images": 5}))
    assert jpegs_of(prepared).items() <= more.items() and len(more) == 10


def test_the_slower_of_two_processes_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, found = synthetic._write, []

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(synthetic, "_write", write)
        write(*arguments)
        found.append(prepare_synthetic(tmp_path, **SMALL))

    monkeypatch.setattr(synthetic, "_write", overtaken)
    found.append(prepare_synthetic(tmp_path, **SMALL))
    assert found[0] == found[1] and list(tmp_path.iterdir()) == [found[0]]


@pytest.mark.parametrize(
    "change", [{"train_images": 0}, {"image_width": (300, 200)}, {"image_height": (320, 4000)}, {"image_height": 320}]
)
def test_wrong_parameters(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"data\.{next(iter(change))}="):
        prepare_synthetic(tmp_path, **{**SMALL, **change})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_reads_back_as_wider_face(prepared: Path) -> None:
    for split, many in (("train", 5), ("val", 4)):
        records = load_wider_face(prepared, split)  # type: ignore[arg-type]
        assert len(records) == many
        for record in records:
            seeds = [0, synthetic.SPLITS.index(split), int(record.image_id.rpartition("_")[2])]
            drawn_image = draw_image(np.random.default_rng(seeds), (200, 240), (160, 200))
            image = read_image_rgb(record.path)
            # JPEG at quality 60 and above keeps an image within a few grey levels on average.
            assert np.abs(image.astype(int) - drawn_image.image_rgb).mean() < 12
            usable = [face.box_xywh for face in drawn_image.faces if not face.invalid]
            assert record.boxes_xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h in usable]


def test_limits() -> None:
    for height, hidden, softness, expected in (
        (38, 0.3, 0.045, ["hard", "medium", "easy"]),
        (100, 0.31, 0.01, ["hard", "medium"]),
        (100, 0.0, 0.05, ["hard", "medium"]),
        (9, 0.75, 0.3, ["hard"]),
        (8, 0.0, 0.1, []),
        (100, 0.76, 0.01, []),
    ):
        face = FaceTruth((0, 0, height, height), hidden, softness, 0, 0, 0, 0, 0, 0)
        assert [name for name, limits in SETTINGS.items() if counts(face, limits)] == expected


def test_sample_is_varied(sample: list[scenes.SyntheticImage]) -> None:
    faces = [face for drawn_image in sample for face in drawn_image.faces]
    heights, per_image = np.array([face.box_xywh[3] for face in faces]), [len(own.faces) for own in sample]
    assert heights.min() <= 6 and heights.max() >= 250
    assert 16 <= np.median(heights) <= 28, "WIDER FACE's median is 20"
    assert 0.04 <= per_image.count(0) / len(sample) <= 0.13
    assert 7 <= np.mean(per_image) <= 14 and max(per_image) >= 60, "WIDER FACE has 12 an image"
    assert {drawn_image.event for drawn_image in sample} == set(scenes.EVENTS)
    for attribute, codes in (("blur", 3), ("expression", 2), ("illumination", 2), ("occlusion", 3), ("pose", 2)):
        assert {getattr(face, attribute) for face in faces} == set(range(codes)), attribute
    assert 0 < np.mean([face.invalid for face in faces]) < 0.05
    for drawn_image in sample:
        height, width = drawn_image.image_rgb.shape[:2]
        for x, y, w, h in (face.box_xywh for face in drawn_image.faces):
            assert 0 <= x <= x + 2 <= x + w <= width and 0 <= y <= y + 2 <= y + h <= height
    # Official: 7,211 / 13,319 / 31,958, which is 0.23 / 0.42 / 1.
    sizes = {name: sum(counts(face, limits) for face in faces) for name, limits in SETTINGS.items()}
    assert 0.17 < sizes["easy"] / sizes["hard"] < 0.30 and 0.35 < sizes["medium"] / sizes["hard"] < 0.50


def test_every_box_lies_on_what_its_head_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is drawn again without one head after the other: the change is in and around its box."""
    checked = 0
    for index in range(12):
        whole, heads = _draw_without(monkeypatch, index, None)
        for number, (drawn, kind) in enumerate(heads):
            if kind != "face" or drawn.area < 60 or not drawn.oval.any():
                continue
            changed = (whole != _draw_without(monkeypatch, index, number)[0]).any(axis=2)
            x1, y1, x2, y2 = drawn.box_xyxy
            left, top = max(0, int(x1)), max(0, int(y1))
            inside = changed[top : int(np.ceil(y2)), left : int(np.ceil(x2))]
            if inside.mean() < 0.35:  # mostly hidden by what was drawn later
                continue
            # Hair, hat, ears and blur reach out of the oval, by less than its own size.
            w, h = x2 - x1, y2 - y1
            near = changed[max(0, int(y1 - h)) : int(y2 + h), max(0, int(x1 - w)) : int(x2 + w)]
            assert near.sum() == changed.sum()
            assert inside.sum() > 0.35 * changed.sum()
            checked += 1
            if checked % 6 == 0:
                break
    assert checked >= 15


def test_hidden_share_of_a_face() -> None:
    """A board over the lower half, worked out by hand: half of the oval is left. And the image's border."""
    person = plain_person(100, (80.0, 80.0), mask=False, glasses="none")
    head = draw_head(np.full((160, 160, 3), 90, np.uint8), person)
    y = head.corner[1]
    left = int(head.oval[: 80 - y].sum())
    truth = scenes._truth(person, head, left, PLAIN, (160, 160))
    assert truth is not None
    assert truth.hidden == pytest.approx(0.5, abs=0.05)
    assert truth.occlusion == 2
    assert scenes._truth(person, head, int(0.05 * head.area), PLAIN, (160, 160)) is None
    barely = scenes._truth(person, head, int(0.15 * head.area), PLAIN, (160, 160))
    assert barely is not None and barely.invalid == 1
    masked = dataclasses.replace(person, mask=True)
    truth = scenes._truth(masked, head, head.area, PLAIN, (160, 160))
    assert truth is not None and truth.hidden == pytest.approx(0.33)
    # The center lies on the left border: the box is cut there, and half of the oval is hidden.
    person = plain_person(80, (0.0, 100.0), mask=False, glasses="none")
    head = draw_head(np.full((200, 200, 3), 90, np.uint8), person)
    truth = scenes._truth(person, head, int(head.oval.sum()), PLAIN, (200, 200))
    assert truth is not None and truth.hidden == pytest.approx(0.5, abs=0.03)
    assert truth.box_xywh == (0, 60, round(head.box_xyxy[2]), 80) and head.box_xyxy[0] < -25


@pytest.mark.parametrize("height", [6.0, 13.0, 37.0, 80.0, 200.0])
def test_box_is_the_oval(height: float) -> None:
    """Hairline to chin is the height asked for, and the width follows from the breadth."""
    size = int(3 * height) + 10
    person = plain_person(height, (size / 2, size / 2))
    head = draw_head(np.full((size, size, 3), 128, np.uint8), person)
    half_wh = np.array([height * person.breadth, height]) / 2
    assert head.box_xyxy == pytest.approx([*(size / 2 - half_wh), *(size / 2 + half_wh)])
    rows, columns = np.nonzero(head.oval)
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(drawn + np.tile(head.corner, 2) - head.box_xyxy).max() <= 1.5


def _draw_without(
    monkeypatch: pytest.MonkeyPatch, index: int, omitted: int | None
) -> tuple[np.ndarray, list[tuple[Drawn, str]]]:
    """An image before the camera, with the head of one person left out; and all heads."""
    taken: list[np.ndarray] = []
    heads: list[tuple[Drawn, str]] = []

    def draw(image: np.ndarray, person: Person) -> Drawn:
        heads.append((draw_head(image.copy() if len(heads) == omitted else image, person), person.kind))
        return heads[-1][0]

    def keep(image: np.ndarray, _: Shot) -> np.ndarray:
        taken.append(image.copy())
        return image

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "draw_head", draw)
        patch.setattr(scenes, "take", keep)
        draw_image(np.random.default_rng([5, 0, index]))
    return taken[0], heads


@pytest.mark.parametrize("side", [64, 96, 128])
def test_images_of_every_size_that_is_allowed_can_be_drawn(side: int) -> None:
    for seed in range(40):
        drawn_image = draw_image(np.random.default_rng(seed), (side, side), (side, side))
        assert drawn_image.image_rgb.shape == (side, side, 3)
