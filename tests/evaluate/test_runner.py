"""An evaluation as a whole: any benchmark, the test split, large images, options, and what a person may get wrong."""

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import RunRecord, locked
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.sources import WiderFaceSource, build_source
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.detector import FaceDetector, open_detector
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.protocols import full_settings, protocol_settings
from fanet_lightning.evaluate import __main__ as verb_main
from fanet_lightning.evaluate import runner as inference
from fanet_lightning.evaluate.runner import evaluate
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import read_predictions, write_submission
from tests.data.wider_files import write_image
from tests.evaluate.helpers import write_checkpoint
from tests.score.helpers import refused

ORIGINAL = {"name": "original", "kind": "original", "size": None}


class Source:
    """Images without a face, scored as WIDER FACE's are."""

    name = "noise"

    def __init__(self, root: Path, sizes: list[tuple[int, int]]) -> None:
        self.records = [ImageRecord(f"e/{i}", root / f"{i}.png") for i in range(len(sizes))]
        for i, (record, size) in enumerate(zip(self.records, sizes, strict=True)):
            write_image(record.path, i, size)
        ids, nothing = tuple(record.image_id for record in self.records), [np.zeros((0, 4))] * len(sizes)
        truth = GroundTruth(ids, nothing, {"all": [np.zeros(0, np.bool_)] * len(sizes)})
        self.val, self.ground_truth, self.benchmark = lambda: self.records, lambda: truth, WiderFaceBenchmark


def test_what_an_evaluation_writes(detector: FaceDetector, tmp_path: Path) -> None:
    """In a folder that takes one evaluation at a time, and in which the files of others stay."""
    source, out = Source(tmp_path, [(64, 96), (80, 48)]), tmp_path / "out"
    mine = {"photos/a.jpg": "picture", "notes.txt": "notes", "detections.csv": "1,2"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    with locked(out), pytest.raises(InputError, match="in use by a run of evaluate"):
        evaluate(detector, source, ORIGINAL, out)
    for _ in range(2):  # the second over the first
        assert evaluate(detector, source, ORIGINAL, out).keys() == {"all"}
        assert {name: (out / name).read_text() for name in mine} == mine
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["ap"]) == ("wider_face", "original", {"all": None})
    made_by = scores["made_by"]
    assert made_by["protocol_settings"] == full_settings(ORIGINAL)
    assert made_by["detection"]["keep"] == 30 and made_by["detection"]["top_k"] == 5000
    assert made_by["lower_top"] == 0 and made_by["tiled_images"] == 0 and made_by["images_per_second"] > 0
    scales = json.loads((out / "scales.json").read_text())
    assert [(s["height"], s["width"], s["scale"], s["tiles"]) for (s,) in scales.values()] == [
        (64, 96, 1.0, 1), (80, 48, 1.0, 1),
    ]  # fmt: skip
    assert (out / "detections.png").stat().st_size and not (out / "unfinished.jsonl").exists()


def test_top_edges_are_lowered_before_writing(detector: FaceDetector, tmp_path: Path) -> None:
    source, rows = Source(tmp_path, [(64, 96)]), {}
    for fraction in (0.0, 0.25):
        out = tmp_path / str(fraction)
        evaluate(detector, source, ORIGINAL, out, lower_top=fraction)
        rows[fraction] = read_predictions(out / "predictions", ["e/0"]).boxes_xywh
        assert json.loads((out / "scores.json").read_text())["made_by"]["lower_top"] == fraction
    x, y, w, h = rows[0.0].T
    np.testing.assert_allclose(rows[0.25], np.stack([x, y + h / 4, w, 0.75 * h], axis=1), atol=0.1)


def test_images_that_are_done_are_not_looked_at_again(detector: FaceDetector, tmp_path: Path) -> None:
    records, path = Source(tmp_path, [(64, 96), (80, 48), (70, 70)]).val(), tmp_path / "journal"
    ids = [record.image_id for record in records]
    with Journal(path, {}) as journal:
        first = inference.detect_records(detector, records[1:2], TestScale("original"), 0, journal)
    records[1].path.unlink()
    with Journal(path, {}) as journal:
        found = inference.detect_records(detector, records, TestScale("original"), 0, journal)
    assert list(found) == ids and torch.equal(found["e/1"].detections.boxes_xyxy, first["e/1"].detections.boxes_xyxy)
    # Threads that read find the same; and of a journal that has them all, no image is read.
    write_image(records[1].path, 1, (80, 48))
    with Journal(tmp_path / "threads", {}) as journal:
        again = inference.detect_records(detector, records, TestScale("original"), 2, journal)
    assert list(again) == ids and all(again[name].passes == found[name].passes for name in ids)
    assert all(list(again[name].detections) == list(found[name].detections) for name in ids)
    for record in records:
        record.path.unlink()
    with Journal(path, {}) as journal:
        assert list(inference.detect_records(detector, records, TestScale("original"), 2, journal)) == ids


def test_a_network_of_ones_own_that_has_changed_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "own_and_changed.py"
    module.write_text("from fanet_lightning.models.fanet import FANet\n\nclass Net(FANet):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = write_checkpoint(tmp_path / "own.ckpt", 2, {"keep": 30}, _target_="own_and_changed.Net")
    source, said = Source(tmp_path, [(64, 96)]), []

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "_draw", interrupted)
    for change in ("", "", "# a word\n"):
        module.write_text(module.read_text() + change)
        with pytest.raises(KeyboardInterrupt):
            evaluate(open_detector(own, "cpu"), source, ORIGINAL, tmp_path / "out")
        said.append(capsys.readouterr().out)
    assert "resuming: 1 image done" in said[1] and "of other settings (code)" in said[2]


@pytest.mark.slow
def test_an_image_of_a_hundred_megapixels(
    detector: FaceDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 × 10,000, as if memory held 25 of them: tiles where the protocol does not shrink it."""
    source = Source(tmp_path, [(64, 96)])
    tile = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    assert cv2.imwrite(str(source.records[0].path), np.tile(tile, (20, 20, 1)), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    monkeypatch.setattr("fanet_lightning.detect.tiling.bytes_per_pixel", lambda *_, **__: 1.0)
    monkeypatch.setattr("fanet_lightning.detect.tiling.available_bytes", lambda device: 2 * 25_000_000)
    for protocol, expected in (
        # 5,000, as a multiple of 128 4,992; cores of 3,712: (10,000 - 1,280) / 3,712 = 2.3 either way.
        ("original", [(10_000, 10_000, 9)]),
        ("multiscale", [(1929, 1929, 1), (1929, 1929, 1), (965, 965, 1), (1447, 1447, 1)]),
    ):
        evaluate(detector, source, protocol_settings(protocol), tmp_path / protocol)
        (passes,) = json.loads((tmp_path / protocol / "scales.json").read_text()).values()
        assert [(step["height"], step["width"], step["tiles"]) for step in passes] == expected
        made_by = json.loads((tmp_path / protocol / "scores.json").read_text())["made_by"]
        assert made_by["tiled_images"] == (protocol == "original")


def make_test_split(root: Path) -> list[str]:
    ids = ["0--Parade/0_Parade_b", "0--Parade/0_Parade_a", "9--Press/9_Press_x"]
    for number, image_id in enumerate(ids):
        write_image(root / "WIDER_test/images" / f"{image_id}.jpg", number, (64, 80))
    (root / "wider_face_split").mkdir()
    names = "".join(f"{image_id}.jpg\n" for image_id in ids)
    (root / "wider_face_split/wider_face_test_filelist.txt").write_text(names)
    return ids


def test_the_test_split_gives_a_submission(
    checkpoint: Path, detector: FaceDetector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, out = make_test_split(tmp_path), tmp_path / "out"
    command = [f"checkpoint={checkpoint}", "data=wider_face", f"data.root={tmp_path}", f"out={out}", "device=cpu"]
    for words in ("data.val.split=test", "split=test"):
        assert verb_main.main([*command, words, "detection.keep=30"]) == 0
        printed = capsys.readouterr().out
        assert f"no labels, so no scores: {out / 'submission.zip'} holds 90 boxes of 3 images" in printed
    assert not (out / "scores.json").exists()
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == sorted(f"{image_id}.txt" for image_id in ids)
        lines = archive.read("9--Press/9_Press_x.txt").decode().splitlines()
    assert lines[:2] == ["9_Press_x", "30"] and len(lines) == 32
    assert len(read_predictions(out / "submission.zip", ids).scores) == 90
    record = json.loads((out / "submission.json").read_text())
    assert (record["images"], record["boxes"], record["protocol"]) == (3, 90, "original")
    assert record["made_by"]["protocol_settings"]["kind"] == "original" and "ap" not in record
    # Scores of another split are not written next to it.
    refused("submission.zip", evaluate, detector, WiderFaceSource(tmp_path), ORIGINAL, out)


def test_an_archive_needs_every_image(tmp_path: Path) -> None:
    folder, one, two = tmp_path / "predictions", tmp_path / "one.zip", tmp_path / "two.zip"
    (folder / "e").mkdir(parents=True)
    (folder / "e/a.txt").write_text("a\n1\n1 2 3 4 0.5\n")
    assert [write_submission(path, folder, ["e/a"]).boxes_xywh.tolist() for path in (one, two)] == [[[1, 2, 3, 4]]] * 2
    assert one.read_bytes() == two.read_bytes()
    for message, ids in (("1 of 2 images .*e/b", ["e/a", "e/b"]), ("'e/a.txt'", ["e/c"])):
        refused(message, write_submission, tmp_path / "three.zip", folder, ids)
    assert not (tmp_path / "three.zip").exists()


def test_the_command_line_takes_them(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"train_images": 1, "val_images": 2, "seed": 3, "image_width": [160, 200], "image_height": [120, 160]}
    data = {"name": "synthetic", "root": str(tmp_path / "drawn"), **options}
    run = checkpoint.parent.parent
    RunRecord(name="a", seed=0, settings={"data": data}).write(run)
    try:
        assert verb_main.main([f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "device=cpu", "workers=0"]) == 0
    finally:
        (run / "run.json").unlink()
    assert "data=synthetic with the settings of the checkpoint's run" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/scores.json").read_text())["images"] == 2
    expected = [record.image_id for record in build_source(**data).val()]
    assert list(json.loads((tmp_path / "out/scales.json").read_text())) == expected


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=maybe"], "resume=maybe: give auto .* or false"),
        (["lower_top=1"], "lower_top=1: give a fraction of a box's height, at least 0 and below 1"),
        (["data=wider_face", "split=foo"], "split=foo: data=wider_face has train, val, test"),
        (["data=fddb", "split=test"], "split=test: data=fddb has no splits"),
        (["detection.nms_iou=3"], "detection.nms_iou=3"),
    ],
)
def test_mistakes_at_the_command_line(checkpoint: Path, tmp_path: Path, words: list[str], message: str) -> None:
    command = [f"checkpoint={checkpoint}", f"data.root={tmp_path / 'data'}", f"out={tmp_path / 'out'}", "device=cpu"]
    refused(message, verb_main.main, [*command, *words])


@pytest.mark.parametrize("name", ["predictions", "scores.json", "pr_curves.pdf"])
def test_what_is_of_something_else_is_not_written_over(detector: FaceDetector, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    mine = out / name if "." in name else out / name / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refused(name, evaluate, detector, Source(tmp_path, [(40, 50)]), ORIGINAL, out)
    assert mine.read_text() == "mine" and not (out / "unfinished.jsonl").exists()
