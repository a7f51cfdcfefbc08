"""``python -m fanet_lightning.score`` on every benchmark: files in the official layouts, expectations by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.score.__main__ import main
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, write_ground_truth
from fanet_lightning.score.wider_face.predictions import read_predictions, write_predictions
from tests.data.wider_files import write_image
from tests.score.fddb_files import write_detections as write_fddb_detections
from tests.score.fddb_files import write_folds, write_sizes
from tests.score.helpers import refused
from tests.score.pascal_face_files import CORRECTED, write_annotations


@pytest.fixture
def wider(tmp_path: Path) -> tuple[Path, Path]:
    """Two images: one face found and one missed; one found, and a false alarm."""
    boxes = [np.array([[10.0, 10, 40, 40], [100, 10, 20, 20]]), np.array([[0.0, 0, 30, 30]])]
    counted = {"easy": [np.array([True, False]), np.array([True])], "hard": [np.array([True, True]), np.array([True])]}
    counted["medium"] = counted["easy"]
    blur = {"blur": [np.array([0, 2], np.int8), np.array([0], np.int8)]}
    ids = ("0--Parade/0_Parade_a", "1--Riot/1_Riot_b")
    write_ground_truth(tmp_path / "gt", GroundTruth(ids, boxes, counted, attributes=blur))
    rows = {ids[0]: ([[10, 10, 50, 50]], [0.9]), ids[1]: ([[0, 0, 30, 30], [200, 200, 240, 240]], [0.8, 0.7])}
    write_predictions(tmp_path / "found", rows)
    return tmp_path / "found", tmp_path / "gt"


def test_attributes_and_errors_of_wider_face(
    wider: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"predictions={wider[0]}", f"ground_truth={wider[1]}", f"out={out}", "attributes=true", "errors=true"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    groups = json.loads((out / "attributes.json").read_text())["groups"]
    # All three faces: two hits, then the false alarm.
    assert groups["blur"]["heavy"]["faces"] == 1
    assert groups["blur"]["heavy"]["ap"] == 0
    assert groups["blur"]["clear"]["ap"] == 1
    assert groups["event"]["1--Riot"]["ap"] == 1
    errors = json.loads((out / "errors.json").read_text())["settings"]["hard"]
    assert errors["ap"] == pytest.approx(2 / 3)
    # Two hits and one missed face: without it AP is 1. The false alarm comes last and costs nothing.
    assert errors["dap"]["misses"] == pytest.approx(1 / 3)
    assert errors["dap"]["background"] == 0
    assert (out / "errors" / "index.html").is_file()
    assert "the 2 worst of 2 images" in printed.out


def test_images_that_are_missing_are_named(
    wider: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    words = [f"predictions={wider[0]}", f"ground_truth={wider[1]}", f"out={tmp_path / 'out'}", "bootstrap=0"]
    words += ["errors=true", f"pictures={pictures}"]
    refused(f"{pictures} has none of them", main, words)
    write_image(pictures / "1--Riot" / "1_Riot_b.jpg", 0)
    assert main(words) == 0
    printed = capsys.readouterr().err
    assert printed.startswith("warning: 1 of 2 images on ") and "cannot be shown: 0--Parade/0_Parade_a" in printed


def test_the_archive_for_the_test_server(wider: tuple[Path, Path], tmp_path: Path) -> None:
    names = tmp_path / "wider_face_test_filelist.txt"
    names.write_text("0--Parade/0_Parade_a.jpg\n1--Riot/1_Riot_b.jpg\n")
    words = [f"predictions={wider[0]}", "split=test", f"out={tmp_path / 'out'}"]
    archive = tmp_path / "out" / "submission.zip"
    for given in (names, tmp_path):
        assert main([*words, f"ground_truth={given}"]) == 0
    packed = read_predictions(archive, ("0--Parade/0_Parade_a", "1--Riot/1_Riot_b"))
    assert packed.scores.tolist() == [0.9, 0.8, 0.7] and packed.missing == ()
    assert not (tmp_path / "out" / "scores.json").exists()
    before = archive.read_bytes()
    names.write_text("0--Parade/0_Parade_a.jpg\n1--Riot/1_Riot_b.jpg\n1--Riot/1_Riot_c.jpg\n")
    refused("1--Riot/1_Riot_c", main, [*words, f"ground_truth={names}"])
    assert archive.read_bytes() == before


# Files as other programs and other people write them.

BOX = (30, 24, 20, 16)


def put_wider(folder: Path, rows: dict[str, list[tuple[float, ...]]], line: str = "{name}") -> Path:
    """``event/name`` → rows ``x y w h score``; ``line`` is the first line of a file."""
    for image_id, own in rows.items():
        event, _, name = image_id.rpartition("/")
        path = folder / f"{image_id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        first = line.format(name=name, event=event)
        path.write_text("\n".join([first, str(len(own)), *(" ".join(map(str, row)) for row in own)]) + "\n")
    return folder


def faces_of(count: int) -> dict[str, list[tuple[float, ...]]]:
    """Two faces an image, away from the origin, as x y w h."""
    return {f"0--Parade/0_Parade_{i}": [(30 + i, 20, 34, 32), (70, 40 + i, 44, 36)] for i in range(count)}


def put_truth(benchmark: str, folder: Path, faces: dict[str, list[tuple[float, ...]]]) -> Path:
    """Ground truth of 120 × 90 pixels an image in the layout of a benchmark."""
    if benchmark == "wider_face":
        boxes = [np.array(own, np.float64) for own in faces.values()]
        counted = {key: [np.ones(len(own), np.bool_) for own in boxes] for key in ("easy", "medium", "hard")}
        write_ground_truth(folder, GroundTruth(tuple(faces), boxes, counted))
    elif benchmark == "fddb":
        ellipses = {i: [(h / 2, w / 2, np.pi / 2, x + w / 2, y + h / 2) for x, y, w, h in o] for i, o in faces.items()}
        write_folds(folder, {1: ellipses})
        write_sizes(folder / "image_sizes.json", {1: ellipses}, (120, 90))
    elif benchmark == "pascal_face":
        corners = {i.rpartition("/")[2]: [(x, y, x + w, y + h) for x, y, w, h in own] for i, own in faces.items()}
        write_annotations(folder / CORRECTED, corners)
    else:
        images = [{"id": n, "file_name": f"{i}.jpg", "width": 120, "height": 90} for n, i in enumerate(faces, 1)]
        boxes_of = [(n, box) for n, own in enumerate(faces.values(), 1) for box in own]
        annotations = [{"id": k, "image_id": n, "category_id": 1, "bbox": b} for k, (n, b) in enumerate(boxes_of, 1)]
        folder.mkdir()
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "face"}]}
        (folder / "truth.json").write_text(json.dumps(content))
        return folder / "truth.json"
    return folder


def put_rows(benchmark: str, path: Path, rows: dict[str, list[tuple[float, ...]]]) -> Path:
    """Rows of four numbers, whatever they mean, with score 0.9, in the format of a benchmark."""
    scored = {image_id: [(*row, 0.9) for row in own] for image_id, own in rows.items()}
    if benchmark == "wider_face":
        return put_wider(path, scored)
    if benchmark == "fddb":
        write_fddb_detections(path, {1: scored})
        return path
    if benchmark == "pascal_face":
        lines = [f"{i.rpartition('/')[2]} 0.9 {' '.join(map(str, row))}" for i, own in rows.items() for row in own]
        path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
        return path.with_suffix(".txt")
    entries = [
        {"image_id": n, "category_id": 1, "bbox": row, "score": 0.9}
        for n, own in enumerate(rows.values(), 1)
        for row in own
    ]
    path.with_suffix(".json").write_text(json.dumps(entries))
    return path.with_suffix(".json")


def words_of(benchmark: str, folder: Path, faces: dict[str, Any], rows: dict[str, Any] | None = None) -> list[str]:
    """The command's words for these faces, and for rows where some are given."""
    words = [f"benchmark={benchmark}", f"ground_truth={put_truth(benchmark, folder / 'truth', faces)}", "bootstrap=0"]
    return words if rows is None else [*words, f"predictions={put_rows(benchmark, folder / 'found', rows)}"]


@pytest.mark.parametrize("line", ["{event}/{name}.jpg", "./{name}", "{event}\\{name}.JPG", "{event}/{event}/{name}"])
def test_name_lines_that_name_the_same_image(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """S3FD and S3FD.pytorch write ``event/name.jpg``."""
    faces = faces_of(2)
    rows = {image_id: [(*row, 0.9) for row in own] for image_id, own in faces.items()}
    words = words_of("wider_face", tmp_path, faces)
    found = put_wider(tmp_path / "found", rows, line)
    (found / "0--Parade" / "._0_Parade_0.txt").write_bytes(b"\0\5\x16\7")
    (found / "0--Parade" / "0_Parade_0.txt").rename(found / "0--Parade" / "0_Parade_0.JPG.TXT")
    assert main([*words, f"predictions={found}"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "1.000000" in printed.out


def test_a_folder_packed_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = faces_of(2)
    words = words_of("wider_face", tmp_path, faces)
    put_rows("wider_face", tmp_path / "packed" / "found", faces)
    archive = shutil.make_archive(str(tmp_path / "found"), "zip", tmp_path / "packed")
    assert main([*words, f"predictions={archive}"]) == 0
    assert "1.000000" in capsys.readouterr().out


def test_negative_sides_in_fddb_are_false_alarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = faces_of(2)
    words = [*words_of("fddb", tmp_path, faces), f"predictions={tmp_path / 'found'}"]
    first, second = faces
    # Both rows of negative size cover a face if their edges are swapped.
    (x1, y1, w1, h1), (x2, y2, w2, h2) = faces[first][1], faces[second][1]
    rows = {
        first: [(*faces[first][0], 0.9), (x1 + w1, y1, -w1, h1, 0.8)],
        second: [(*faces[second][0], 0.7), (x2, y2 + h2, w2, -h2, 0.6)],
    }
    write_fddb_detections(tmp_path / "found", {1: {f"./{image_id}.JPG": own for image_id, own in rows.items()}})
    assert main([*words, f"out={tmp_path / 'out'}"]) == 0
    assert "warning: 2 detections with a negative width or height" in capsys.readouterr().err
    # At the lowest threshold two of four faces, and the two as false positives.
    assert (tmp_path / "out" / "DiscROC.txt").read_text().splitlines()[0] == "0.5 2 0.6"
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["discrete"]["max"] == 0.5


@pytest.mark.parametrize("benchmark", ["wider_face", "fddb", "pascal_face", "coco"])
def test_intervals_do_not_depend_on_the_order_of_the_list(benchmark: str, tmp_path: Path) -> None:
    faces = faces_of(9)
    words = [f"benchmark={benchmark}", f"ground_truth={put_truth(benchmark, tmp_path / 'truth', faces)}"]
    if benchmark == "pascal_face":
        faces = {i: [(x, y, x + w, y + h) for x, y, w, h in own] for i, own in faces.items()}
    # One of two faces in the first images, so that resamples differ.
    rows = {image_id: own[: 1 + (i > 3)] for i, (image_id, own) in enumerate(faces.items())}
    none = {image_id: own[:1] for image_id, own in rows.items()}
    words += [f"predictions={put_rows(benchmark, tmp_path / 'found', rows)}", "bootstrap=50"]
    words += [f"against={put_rows(benchmark, tmp_path / 'other', none)}"]
    ids = [image_id.rpartition("/")[2] if benchmark == "pascal_face" else image_id for image_id in list(faces)[1:]]
    written = []
    for name, order in (("sorted", ids), ("turned", ids[::-1]), ("mixed", ids[3:] + ids[:3])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{image_id}.jpg\n" for image_id in order))
        assert main([*words, f"images={tmp_path / name}.txt", f"out={tmp_path / name}"]) == 0
        scores = json.loads((tmp_path / name / "scores.json").read_text())
        written.append((scores["intervals"], scores["against"]["intervals"]))
    assert written[0] == written[1] == written[2]
    bounds = str(written[0])
    assert len(set(bounds.replace("[", "").split())) > 3  # not all of them equal


def put_detections(path: Path, faces: dict[str, list[tuple[float, ...]]], name: str = "{}.jpg") -> Path:
    """``detections.json`` as ``detect`` writes it: its own ids, images by name."""
    images = [{"id": n, "file_name": name.format(i), "width": 120, "height": 90} for n, i in enumerate(faces, 1)]
    rows = [(n, box) for n, own in enumerate(faces.values(), 1) for box in own]
    annotations = [
        {"id": k, "image_id": n, "category_id": 1, "bbox": box, "iscrowd": 0, "score": 0.9}
        for k, (n, box) in enumerate(rows, 1)
    ]
    content = {"made_by": {}, "failed": [], "categories": [{"id": 1, "name": "face"}], "videos": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    return path


@pytest.mark.parametrize("name", ["photos/{}.PNG", "base"])
def test_detections_of_detect_are_joined_by_file_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = faces_of(4)
    words = words_of("coco", tmp_path, faces)
    # Ids count in another order; the image without a detection was looked at, and is not missing.
    turned = dict(reversed(faces.items())) | {"0--Parade/0_Parade_2": []}
    if name == "base":
        turned, name = {image_id.rpartition("/")[2]: own for image_id, own in turned.items()}, "{}.jpg"
    put_detections(tmp_path / "out" / "detections.json", turned, name)
    for given in (tmp_path / "out" / "detections.json", tmp_path / "out"):
        assert main([*words, f"predictions={given}", f"out={tmp_path / 'scores'}", "strict=true"]) == 0
        assert capsys.readouterr().err == ""
        ap = json.loads((tmp_path / "scores" / "scores.json").read_text())["ap"]
        assert ap["50"] == pytest.approx(76 / 101)  # recall 6 of 8: 76 of 101 points at precision 1
    path = tmp_path / "out" / "detections.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"threshold": 0.5}}))
    assert main([*words, f"predictions={path}"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: ") and "0.5" in said


def test_detections_whose_names_do_not_tell_the_image(tmp_path: Path) -> None:
    box: list[tuple[float, ...]] = [BOX]
    words = words_of("coco", tmp_path, {"x/a": box, "y/a": box, "y/b": box})
    for faces, expected in [
        ({"a": box}, r"images\[0\] .*'a\.jpg' may be x/a or y/a"),
        ({"b": box, "z/y/b": box}, "images is there twice"),
        ({"x/a": box, "x/b": box}, r"images\[1\] .*'x/b\.jpg' is not in the annotations"),
    ]:
        refused(expected, main, [*words, f"predictions={put_detections(tmp_path / 'detections.json', faces)}"])
