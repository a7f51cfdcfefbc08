"""Predictions of our own: packed, written, replaced."""

from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions, write_predictions

IDS = ("0--Parade/0_Parade_a_1", "0--Parade/0_Parade_b_2", "1--Handshaking/1_Handshaking_c_3")


def put(root: Path, image_id: str, content: str | bytes, suffix: str = ".txt") -> Path:
    path = root / f"{image_id}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(predictions: Predictions, image: int) -> list[list[float]]:
    rows = slice(*predictions.starts[image : image + 2].tolist())
    return np.column_stack([predictions.boxes_xywh[rows], predictions.scores[rows]]).tolist()


def test_predictions_come_back_as_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    detections = {}
    for image_id, count in zip(IDS, (5, 0, 40), strict=True):
        low = rng.uniform(0, 900, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.5, 300, (count, 2))], axis=1).astype(np.float32)
        detections[image_id] = (boxes, rng.uniform(0, 1, count).astype(np.float32))
    write_predictions(tmp_path / "run", detections)
    read = read_predictions(tmp_path / "run", IDS, strict=True)
    direct = Predictions.from_detections(detections, IDS)
    for i in range(3):
        expected = sorted(rows_of(direct, i), key=lambda row: -row[4])
        np.testing.assert_allclose(
            np.array(rows_of(read, i)).reshape(-1, 5), np.array(expected).reshape(-1, 5), rtol=0, atol=0.00501
        )
        scores = [row[4] for row in rows_of(read, i)]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, [row[4] for row in expected], rtol=0, atol=5.1e-7)
    lines = (tmp_path / "run" / f"{IDS[1]}.txt").read_text().splitlines()
    assert lines == ["0_Parade_b_2", "0"]


def test_written_line_by_hand(tmp_path: Path) -> None:
    write_predictions(tmp_path / "run", {IDS[0]: ([[1, 2, 4.126, 2], [0, 0, 10, 20.5]], [0.25, 0.9999996])})
    assert (tmp_path / "run" / f"{IDS[0]}.txt").read_text() == (
        "0_Parade_a_1\n2\n0.00 0.00 10.00 20.50 1.000000\n1.00 2.00 3.13 0.00 0.250000\n"
    )


def test_writing_replaces_predictions_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_predictions(run, {IDS[0]: ([[0, 0, 1, 1]], [0.5])})
    write_predictions(run, {IDS[2]: ([[0, 0, 1, 1]], [0.5])})
    assert [path.relative_to(run).as_posix() for path in run.rglob("*.txt")] == [f"{IDS[2]}.txt"]
    with pytest.raises(ValueError, match="not finite or has a negative side"):
        write_predictions(run, {IDS[0]: ([[0, 0, 1, 1]], [0.5]), IDS[1]: ([[5, 0, 1, 1]], [0.5])})
    with pytest.raises(ValueError, match="is no relative path"):
        write_predictions(run, {"../plain": ([[0, 0, 1, 1]], [0.5])})
    assert [path.relative_to(run).as_posix() for path in run.rglob("*.txt")] == [f"{IDS[2]}.txt"]
    put(run, "0--Parade/photo", "keep me", suffix=".jpg")
    with pytest.raises(InputError, match="holds something else than predictions"):
        write_predictions(run, {IDS[0]: ([[0, 0, 1, 1]], [0.5])})
    assert (run / "0--Parade" / "photo.jpg").read_text() == "keep me"
    put(tmp_path, "labels/photo", "0 0.5 0.5 0.1 0.1")  # YOLO's
    with pytest.raises(InputError, match="holds something else than predictions"):
        write_predictions(tmp_path / "labels", {IDS[0]: ([[0, 0, 1, 1]], [0.5])})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "run"]  # no temporary folder stays
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_predictions(tmp_path / "file" / "run", {})


def test_a_failed_rename_gives_the_earlier_predictions_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    write_predictions(run, {IDS[0]: ([[0, 0, 1, 1]], [0.5])})
    rename = Path.replace

    def fail_for_new_tree(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fail_for_new_tree)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        write_predictions(run, {IDS[2]: ([[0, 0, 1, 1]], [0.5])})
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")] == [f"run/{IDS[0]}.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_detections_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="number of boxes"):
        Predictions.from_detections({"a/b": ([[0, 0, 1, 1]], [0.5, 0.5])}, ["a/b"])
    with pytest.raises(ValueError, match="1 images outside the run, the first is 'c/d'"):
        Predictions.from_detections({"c/d": ([], [])}, ["a/b"])
