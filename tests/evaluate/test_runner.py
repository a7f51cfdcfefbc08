"""An evaluation as a whole: any benchmark, the test split, large images, options, and what a person may get wrong."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import RunRecord, locked
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.data.sources import WiderFaceSource, build_source
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.journal import Journal
from fanet_lightning.detect.protocols import TwoSizes
from fanet_lightning.evaluate import __main__ as verb_main
from fanet_lightning.evaluate import runner as inference
from fanet_lightning.evaluate.runner import evaluate
from fanet_lightning.score.results import Samples, Scores
from fanet_lightning.score.wider_face.predictions import read_predictions, write_submission
from tests.evaluate.helpers import write_checkpoint
from tests.score.helpers import refused

ORIGINAL = {"name": "original", "kind": "original", "size": None}


def write_image(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


class PixelScores(Scores):
    def resampled(self, samples: int, seed: int) -> Samples:
        return {"wide": {"all": np.zeros(samples)}, "narrow": {"all": np.zeros(samples)}}

    def write_curves(self, folder: Path) -> list[Path]:
        return []


class Pixels:
    """A benchmark of our own: the share of detections that are wider than 20 pixels; one line per image."""

    name = "pixels"

    def write_predictions(self, folder: Path, ground_truth: list[str], detections: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        assert list(detections) == ground_truth
        lines = [f"{key} {json.dumps(np.asarray(boxes).tolist())}\n" for key, (boxes, _) in detections.items()]
        (folder / "all.txt").write_text("".join(lines))

    def score(self, ground_truth: list[str], predictions: Path, *, strict: bool = False) -> Scores:
        boxes = [json.loads(line.split(" ", 1)[1]) for line in (predictions / "all.txt").read_text().splitlines()]
        widths = np.array([box[2] - box[0] for image in boxes for box in image])

        share = float((widths > 20).mean())
        values = {"wide": {"all": share}, "narrow": {"all": 1 - share}}
        return PixelScores(
            benchmark="pixels", title="Pixels", image_ids=ground_truth, images_of_benchmark=2, faces={"all": 0},
            values=values,
        )  # fmt: skip


class Source:
    """What any benchmark's source offers `evaluate`."""

    name = "pixels"

    def __init__(self, root: Path, sizes: list[tuple[int, int]]) -> None:
        self.records = [
            ImageRecord(f"e/{i}", write_image(root / f"{i}.png", *size, seed=i)) for i, size in enumerate(sizes)
        ]

    def val(self) -> list[ImageRecord]:
        return self.records

    def ground_truth(self) -> list[str]:
        return [record.image_id for record in self.records]

    def benchmark(self) -> Pixels:
        return Pixels()


def test_any_benchmark_and_its_measures(checkpoint: Path, tmp_path: Path) -> None:
    source, out = Source(tmp_path, [(64, 96), (80, 48)]), tmp_path / "out"
    assert evaluate(checkpoint, source, ORIGINAL, out, device="cpu", workers=0) == {}  # it has no AP
    scores = json.loads((out / "scores.json").read_text())
    assert scores["benchmark"] == "pixels" and scores["protocol"] == "original"
    assert 0 < scores["wide"]["all"] < 1 and scores["wide"]["all"] + scores["narrow"]["all"] == 1
    made_by = scores["made_by"]
    assert made_by["protocol_settings"] == {
        "name": "original", "kind": "original", "size": None, "max_long": None, "tile_pixels": "auto"
    }  # fmt: skip
    assert made_by["detection"]["keep"] == 30 and made_by["detection"]["top_k"] == 5000
    assert made_by["lower_top"] == 0 and made_by["tiled_images"] == 0 and made_by["images_per_second"] > 0
    scales = json.loads((out / "scales.json").read_text())
    assert [(s["height"], s["width"], s["scale"], s["tiles"]) for (s,) in scales.values()] == [
        (64, 96, 1.0, 1), (80, 48, 1.0, 1),
    ]  # fmt: skip
    assert (out / "detections.png").stat().st_size and not (out / "unfinished.jsonl").exists()


def test_top_edges_are_lowered_before_writing(checkpoint: Path, tmp_path: Path) -> None:
    source, rows = Source(tmp_path, [(64, 96)]), {}
    for fraction in (0.0, 0.25):
        out = tmp_path / str(fraction)
        evaluate(checkpoint, source, ORIGINAL, out, device="cpu", workers=0, lower_top=fraction)
        rows[fraction] = np.array(json.loads((out / "predictions/all.txt").read_text().split(" ", 1)[1]))
        assert json.loads((out / "scores.json").read_text())["made_by"]["lower_top"] == fraction
    x1, y1, x2, y2 = rows[0.0].T
    np.testing.assert_allclose(rows[0.25], np.stack([x1, y1 + 0.25 * (y2 - y1), x2, y2], axis=1), atol=1e-4)


def test_a_folder_takes_one_evaluation_at_a_time_and_the_files_of_others_stay(checkpoint: Path, tmp_path: Path) -> None:
    source, out = Source(tmp_path, [(64, 96)]), tmp_path / "out"
    mine = {"photos/a.jpg": "picture", "notes.txt": "notes", "detections.csv": "1,2"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    with locked(out), pytest.raises(InputError, match="in use by a run of evaluate"):
        evaluate(checkpoint, source, ORIGINAL, out, device="cpu", workers=0)
    for _ in range(2):  # the second over the first
        evaluate(checkpoint, source, ORIGINAL, out, device="cpu", workers=0)
        assert {name: (out / name).read_text() for name in mine} == mine


def test_images_that_are_done_are_not_looked_at_again(checkpoint: Path, tmp_path: Path) -> None:
    records, path = Source(tmp_path, [(64, 96), (80, 48), (70, 70)]).val(), tmp_path / "journal"
    detector, ids = FaceDetector.from_checkpoint(checkpoint), [record.image_id for record in records]
    with Journal(path, {}) as journal:
        first = inference.detect_records(detector, records[1:2], TestScale("original"), 0, journal)
    records[1].path.unlink()
    with Journal(path, {}) as journal:
        found = inference.detect_records(detector, records, TestScale("original"), 0, journal)
    assert list(found) == ids and torch.equal(found["e/1"].detections.scores, first["e/1"].detections.scores)
    # Threads that read find the same; and of a journal that has them all, no image is read.
    write_image(records[1].path, 80, 48, seed=1)
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
            evaluate(own, source, ORIGINAL, tmp_path / "out", device="cpu")
        said.append(capsys.readouterr().out)
    assert "resuming: 1 images" in said[1] and "of other settings (code)" in said[2]


def test_a_photo_that_the_decoder_shrinks_has_boxes_in_its_own_pixels(tmp_path: Path) -> None:
    """A portrait of 7.7 megapixels: the decoder halves it, the first pass sees it at √(1,024 · 768 / 7.68e6) = 0.32."""
    (record,) = Source(tmp_path, [(64, 96)]).val()
    with Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))) as photograph:
        photograph.resize((2560, 3000)).save(record.path, format="JPEG")
    detector = FaceDetector.from_pretrained()
    with Journal(tmp_path / "journal", {}) as journal:
        (found,) = inference.detect_records(detector, [record], TwoSizes(), 0, journal).values()
    expected = detector.detect(read_image_rgb(record.path), "auto")
    assert 800 < expected.boxes_xyxy[0, 2] - expected.boxes_xyxy[0, 0] < 1000
    np.testing.assert_allclose(found.detections.boxes_xyxy[0], expected.boxes_xyxy[0], atol=20)
    assert [step.height for step in found.passes] == [960, 450]
    assert [step.scale for step in found.passes] == pytest.approx([960 / 3000, 450 / 3000])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["original", "short640", "multiscale"])
def test_an_image_of_a_hundred_megapixels(
    checkpoint: Path, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 × 10,000, as if memory held 25 of them: tiles where the protocol does not shrink it."""
    from fanet_lightning.detect.protocols import protocol_settings

    source, out = Source(tmp_path, [(64, 96)]), tmp_path / "out"
    tile = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    assert cv2.imwrite(str(source.records[0].path), np.tile(tile, (20, 20, 1)), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    monkeypatch.setattr("fanet_lightning.detect.tiling.bytes_per_pixel", lambda *_, **__: 1.0)
    monkeypatch.setattr("fanet_lightning.detect.tiling.available_bytes", lambda device: 2 * 25_000_000)
    evaluate(checkpoint, source, protocol_settings(protocol), out, device="cpu", workers=1)
    ((*passes,),) = json.loads((out / "scales.json").read_text()).values()
    sizes = [(step["height"], step["width"], step["tiles"]) for step in passes]
    made_by = json.loads((out / "scores.json").read_text())["made_by"]
    if protocol == "original":
        # 5,000, as a multiple of 128 4,992; cores of 3,712: (10,000 - 1,280) / 3,712 = 2.3 either way.
        assert sizes == [(10_000, 10_000, 9)] and made_by["tiled_images"] == 1
    elif protocol == "short640":
        assert sizes == [(640, 640, 1)] and made_by["tiled_images"] == 0
    else:
        assert sizes == [(1929, 1929, 1), (1929, 1929, 1), (965, 965, 1), (1447, 1447, 1)]


def make_test_split(root: Path) -> list[str]:
    ids = ["0--Parade/0_Parade_b", "0--Parade/0_Parade_a", "9--Press/9_Press_x"]
    for number, image_id in enumerate(ids):
        write_image(root / "WIDER_test/images" / f"{image_id}.jpg", 64, 80, seed=number)
    (root / "wider_face_split").mkdir()
    names = "".join(f"{image_id}.jpg\n" for image_id in ids)
    (root / "wider_face_split/wider_face_test_filelist.txt").write_text(names)
    return ids


@pytest.mark.parametrize("words", [["split=test"], ["data.val.split=test"]])
def test_the_test_split_gives_a_submission(
    checkpoint: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = make_test_split(tmp_path)
    out = tmp_path / "out"
    command = [f"checkpoint={checkpoint}", "data=wider_face", f"data.root={tmp_path}", f"out={out}", "device=cpu"]
    assert verb_main.main([*command, *words, "workers=0", "detection.keep=30"]) == 0
    assert f"no labels, so no scores: {out / 'submission.zip'} holds 90 boxes of 3 images" in capsys.readouterr().out
    assert not (out / "scores.json").exists()
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == sorted(f"{image_id}.txt" for image_id in ids)
        lines = archive.read("9--Press/9_Press_x.txt").decode().splitlines()
    assert lines[:2] == ["9_Press_x", "30"] and len(lines) == 32
    rows = np.array([line.split() for line in lines[2:]], float)
    assert rows.shape == (30, 5) and (np.diff(rows[:, 4]) <= 0).all()
    assert (rows[:, :2] + rows[:, 2:4] <= [80.01, 64.01]).all()
    packed = read_predictions(out / "submission.zip", ids)
    assert len(packed.scores) == 90
    record = json.loads((out / "submission.json").read_text())
    assert (record["images"], record["boxes"], record["protocol"]) == (3, 90, "original")
    assert record["made_by"]["protocol_settings"]["kind"] == "original" and "ap" not in record
    # Scores of another split are not written next to it.
    refused("submission.zip", evaluate, checkpoint, WiderFaceSource(tmp_path), ORIGINAL, out, device="cpu")


def test_an_archive_needs_every_image(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    (folder / "e").mkdir(parents=True)
    (folder / "e/a.txt").write_text("a\n1\n1 2 3 4 0.5\n")
    packed = write_submission(tmp_path / "one.zip", folder, ["e/a"])
    assert packed.boxes_xywh.tolist() == [[1, 2, 3, 4]]
    write_submission(tmp_path / "two.zip", folder, ["e/a"])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    refused("1 of 2 images .*e/b", write_submission, tmp_path / "three.zip", folder, ["e/a", "e/b"])
    refused("'e/a.txt'", write_submission, tmp_path / "three.zip", folder, ["e/c"])
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
        (["resume=maybe"], "resume=maybe: take auto .* or false"),
        (["lower_top=1"], "lower_top=1: give a fraction of a box's height, at least 0 and below 1"),
        (["data=wider_face", "split=foo"], "split=foo is unknown; take one of train, val, test"),
        (["data=fddb", "split=test"], "split=test: data=fddb has no splits"),
        (["data=fddb", "data.root=nowhere"], "nowhere"),
        (["attributes=maybe"], "attributes=maybe is neither true nor false"),
        (["detection.nms_iou=3"], "detection.nms_iou=3"),
        (["split=test"], "split=test: data=synthetic has no splits"),
        (["protocol.tile_pixels=1000"], "protocol.tile_pixels=1000; give auto, a number of at least 1982464, or null"),
    ],
)
def test_mistakes_at_the_command_line(checkpoint: Path, tmp_path: Path, words: list[str], message: str) -> None:
    command = [f"checkpoint={checkpoint}", f"data.root={tmp_path / 'data'}", f"out={tmp_path / 'out'}", "device=cpu"]
    refused(message, verb_main.main, [*command, *words])


@pytest.mark.parametrize("name", ["predictions", "scores.json", "scales.json", "detections.png", "pr_curves.pdf"])
def test_what_is_of_something_else_is_not_written_over(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Known before any image is read; and other names in the folder are no hindrance."""
    out = tmp_path / "out"
    (out / "photos").mkdir(parents=True)
    mine = out / name if "." in name else out / name / "thesis.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    refused(name, evaluate, checkpoint, Source(tmp_path, [(40, 50)]), ORIGINAL, out, device="cpu", workers=0)
    assert mine.read_text() == "mine" and not (out / "unfinished.jsonl").exists()
