"""The page of errors: what its data say, what it copies, and that it works in a browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from fanet_lightning.report.error_gallery import MAX_ROWS, write_error_gallery
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.data.wider_files import write_image
from tests.score.helpers import refused

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
A, B, C = "0--Parade/a", "1--<b>Riot & Co</b>/b", "2--Rest/c"


@pytest.fixture
def truth() -> GroundTruth:
    """A: a hit, a duplicate, a near miss with a badly placed row, a face missed. B: a false alarm. C: nothing amiss."""
    boxes = [
        np.array([[10.0, 10, 40, 40], [100, 10, 40, 40], [200, 100, 20, 20], [5, 150, 30, 30]]),
        np.array([[10.0, 10, 40, 40]]),
        np.array([[10.0, 10, 40, 40]]),
    ]
    # The last face of A does not count.
    counted = {"hard": [np.array([True, True, True, False]), np.array([True]), np.array([True])]}
    blur = {"blur": [np.array([0, 1, 2, 0], np.int8), np.array([0], np.int8), np.array([0], np.int8)]}
    return GroundTruth((A, B, C), boxes, counted, attributes=blur)


@pytest.fixture
def rows(truth: GroundTruth) -> Predictions:
    found = {
        A: ([[10, 10, 50, 50], [12, 10, 52, 50], [120, 10, 160, 50], [5, 150, 35, 180]], [0.9, 0.8, 0.7, 0.65]),
        B: ([[10, 10, 50, 50], [100, 100, 140, 140]], [0.85, 0.6]),
        C: ([[10, 10, 50, 50]], [0.95]),
    }
    return Predictions.from_detections(found, truth.image_ids)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for image_id, size in ((A, (1500, 2000)), (B, (200, 300)), (C, (200, 300))):
        write_image(path := folder / f"{image_id}.{'JPG' if image_id == A else 'jpg'}", 0, size)
    path.write_bytes(path.read_bytes()[:-1000])  # C is cut short
    return folder


def content(folder: Path) -> dict[str, Any]:
    text = (folder / "data.js").read_text()
    assert text.startswith("window.FANET_ERRORS=") and text.endswith(";\n")
    data: dict[str, Any] = json.loads(text.removeprefix("window.FANET_ERRORS=")[:-2])
    return data


def test_data_of_the_page(truth: GroundTruth, rows: Predictions, pictures: Path, tmp_path: Path) -> None:
    assert write_error_gallery(tmp_path / "errors", truth, rows, title="A <run>", images_root=pictures) == (3, [C])
    data = content(tmp_path / "errors")
    assert data["rows"] == {"hit": 3, "duplicate": 1, "localisation": 1, "background": 1, "ignored": 1}
    assert (data["faces"], data["images"], data["setting"]) == (5, 3, "hard")
    assert data["heights"][:2] == [["<10", "<10 px", None, 10], ["10-16", "10–16 px", 10, 16]]
    # The worst first; C costs nothing.
    assert [picture["id"] for picture in data["pictures"]] == [A, B, C]
    assert data["pictures"][2]["gain"] == 0
    first = data["pictures"][0]
    # x y w h, score, kind (hit, duplicate, localisation, background, ignored), nearest face, overlap with the +1.
    assert first["rows"][0] == [10, 10, 40, 40, 0.9, 0, 0, 1.0]
    assert first["rows"][1][4:7] == [0.8, 1, 0]
    assert first["rows"][2] == [120, 10, 40, 40, 0.7, 2, 1, pytest.approx(21 / 61, abs=5e-4)]
    assert first["rows"][3][5] == 4
    # x y w h, counts, found at, nearly found at, blur.
    assert first["faces"] == [
        [10, 10, 40, 40, 1, 0.9, None, 0],
        [100, 10, 40, 40, 1, None, 0.7, 1],
        [200, 100, 20, 20, 1, None, None, 2],
        [5, 150, 30, 30, 0, None, None, 0],
    ]
    assert (first["size"], first["file"]) == ([2000, 1500], "0001.jpg")
    assert data["pictures"][2]["file"] is None and data["pictures"][2]["reason"].startswith("cannot be read")
    assert max(cv2.imread(str(tmp_path / "errors" / "pictures" / "0001.jpg")).shape) == 1024
    assert max(cv2.imread(str(tmp_path / "errors" / "pictures" / "0002.jpg")).shape) == 300
    # Names are text, not markup; what loads is next to the page.
    text = (tmp_path / "errors" / "index.html").read_text()
    assert "A &lt;run&gt;" in text and "<b>Riot" not in text
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_fewer_images_and_none(truth: GroundTruth, rows: Predictions, tmp_path: Path) -> None:
    assert write_error_gallery(tmp_path / "errors", truth, rows, title="T", images=1) == (1, [])
    (only,) = content(tmp_path / "errors")["pictures"]
    assert (only["id"], only["file"]) == (A, None)
    assert only["size"][0] >= 220 and only["size"][1] >= 180  # a blank ground that holds all boxes
    # The gallery of an earlier run is replaced as a whole, and nothing else is.
    write_error_gallery(tmp_path / "errors", truth, rows, title="T", images=3)
    assert len(content(tmp_path / "errors")["pictures"]) == 3
    (tmp_path / "errors" / "thesis.txt").write_text("x")
    refused("thesis", write_error_gallery, tmp_path / "errors", truth, rows, title="T")
    nowhere = {"title": "T", "images_root": tmp_path / "nowhere"}
    refused("nowhere has none of them", write_error_gallery, tmp_path / "new", truth, rows, **nowhere)
    assert [path.name for path in tmp_path.iterdir()] == ["errors"]


def test_only_the_best_rows_of_a_crowd_are_kept_but_all_are_counted(tmp_path: Path) -> None:
    truth = GroundTruth((A,), [np.array([[10.0, 10, 40, 40]])], {"hard": [np.array([True])]})
    scores = np.linspace(0.1, 0.9, MAX_ROWS + 5)
    boxes = np.tile([500.0, 500, 540, 540], (len(scores), 1))
    boxes[0] = [10, 10, 50, 50]  # the hit has the lowest score of all
    write_error_gallery(tmp_path / "errors", truth, Predictions.from_detections({A: (boxes, scores)}, (A,)), title="T")
    data = content(tmp_path / "errors")
    (picture,) = data["pictures"]
    assert (len(picture["rows"]), picture["rows_left_out"], data["proposals"][-1]) == (MAX_ROWS, 5, MAX_ROWS + 5)
    assert (picture["rows"][0][4], picture["faces"][0][5]) == (0.9, 0.1)


def test_where_no_face_counts_there_is_no_number(tmp_path: Path) -> None:
    truth = GroundTruth((A, B), [np.array([[10.0, 10, 40, 40]])] * 2, {"hard": [np.array([False])] * 2})
    write_error_gallery(tmp_path / "errors", truth, Predictions.from_detections({}, (A, B)), title="T")
    data = content(tmp_path / "errors")
    assert data["ap"] is None and set(data["dap"].values()) == {None}
    assert [(picture["id"], picture["gain"]) for picture in data["pictures"]] == [(A, None), (B, None)]


def test_counts_start_at_the_best_f1_in_the_scale_of_the_scores(tmp_path: Path) -> None:
    # Scores from 0 to 200, far from [0, 1]. F1: 2/3 after the first hit, 4/4 after the second, less from then on.
    truth = GroundTruth((A,), [np.array([[10.0, 10, 40, 40], [100, 10, 40, 40]])], {"hard": [np.array([True, True])]})
    found = ([[10, 10, 50, 50], [100, 10, 140, 50], [300, 300, 340, 340], [400, 300, 440, 340]], [200, 100, 50, 0])
    write_error_gallery(tmp_path / "errors", truth, Predictions.from_detections({A: found}, (A,)), title="T")
    data = content(tmp_path / "errors")
    at = data["thresholds"].index(100)
    assert (data["start"], data["proposals"][at], data["hits"][at]) == (100, 2, 2)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
def test_in_a_browser(truth: GroundTruth, rows: Predictions, pictures: Path, tmp_path: Path) -> None:
    write_error_gallery(tmp_path / "errors", truth, rows, title="T", images_root=pictures)
    options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
    command = [str(CHROMIUM), *options.split(), "--window-size=1280,1500", f"--user-data-dir={tmp_path / 'profile'}"]

    def opened(state: str) -> str:
        """The document after its scripts have run; nothing may be logged."""
        page = f"{(tmp_path / 'errors' / 'index.html').as_uri()}#{state}"
        done = subprocess.run([*command, page], capture_output=True, text=True, timeout=300, check=True)
        assert "CONSOLE" not in done.stderr and 'data-ready="true"' in done.stdout, done.stderr
        return done.stdout

    def counts(dom: str) -> dict[str, int]:
        buttons = [tag for tag in re.findall(r"<button[^>]*>", dom) if "data-kind=" in tag and "data-count=" in tag]
        pairs = [(re.search(r'data-kind="(\w+)"', tag), re.search(r'data-count="(\d+)"', tag)) for tag in buttons]
        return {kind.group(1): int(count.group(1)) for kind, count in pairs if kind and count}

    everything = {"hit": 3, "background": 1, "duplicate": 1, "missed": 1, "near": 1, "localisation": 1}
    assert counts(opened("threshold=0.6")).items() >= everything.items()
    # A higher threshold loses the hits below it, and the false alarm.
    high = counts(opened("threshold=0.88"))
    assert (high["hit"], high["background"], high["duplicate"], high["missed"] + high["near"]) == (2, 0, 0, 3)
    # Filters leave the images that have such an error.
    dom = opened("threshold=0.6&kind=background")
    assert re.findall(r'data-image="([^"]*)"', dom.split('id="list"')[1])[0] == html.escape(B, quote=False)
    crops = opened("threshold=0.6&view=crops&kind=missed")
    assert re.search(r'<section[^>]*data-kind="missed"[^>]*data-count="1"', crops)
    # A link to one box marks that box.
    assert 'class="focus"' in opened(f"threshold=0.6&image={quote(A, safe='')}&box=f2&zoom=4")
    # What an attribute leaves: the face with heavy blur, and no row, since none is next to it.
    heavy = counts(opened("threshold=0.6&blur=heavy"))
    assert {kind for kind, count in heavy.items() if count} == {"missed"}
    # Nonsense behind the # is passed over.
    assert counts(opened("threshold=x&kind=constructor&blur=none&image=nowhere&box=f99&zoom=-1")) == counts(opened(""))
