"""The page without a browser: what its functions do, the server's door, and what is left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fanet_lightning import FaceDetector
from fanet_lightning.app import serving as app
from fanet_lightning.app.__main__ import main
from fanet_lightning.app.results import PageImage, detect_image, document, read_upload
from fanet_lightning.ops.structures import Detections
from tests.app.helpers import PHOTO, settings_of, write_video
from tests.score.helpers import refused

LIMITS = {"max_pixels": 10_000_000}


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector.from_pretrained()


@pytest.fixture
def actions(detector: FaceDetector, tmp_path: Path) -> Any:
    pytest.importorskip("gradio", reason="the page is an extra: pip install 'fanet-lightning[app]'")
    from fanet_lightning.app.actions import Actions

    settings = settings_of("max_pixels=10000000", "max_images=3", "max_video_seconds=0.22")
    return Actions(detector, settings, tmp_path / "results")


@pytest.fixture(scope="module")
def address(detector: FaceDetector) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the page is an extra: pip install 'fanet-lightning[app]'")
    with app.serving(detector, settings_of("port=null", "max_upload_mb=0.5")) as url:
        yield url


def test_the_threshold_filters_the_json() -> None:
    boxes_xyxy = torch.tensor([[5.0 * i, 2 * i, 5 * i + 10, 2 * i + 20] for i in range(3)])
    faces = Detections(boxes_xyxy, torch.tensor([0.9, 0.5, 0.3]))
    image = PageImage(Path("gray.png"), 60, 100, np.zeros((30, 50, 3), np.uint8), faces, "original", 0.002)
    content = json.loads(json.dumps(document([image], 0.4, "some_model")))  # plain numbers, no arrays
    [entry] = content.pop("images")
    assert content == {
        "model": "some_model", "threshold": 0.4, "box_format": "x1 y1 x2 y2, pixels of the upright image",
    }  # fmt: skip
    assert (entry["image"], entry["width"], entry["height"], entry["faces"]) == ("gray.png", 100, 60, 2)
    assert entry["detections"][1] == {
        "x1": 5.0, "y1": 2.0, "x2": 15.0, "y2": 22.0, "width": 10.0, "height": 20.0, "score": 0.5,
    }  # fmt: skip


def test_a_redacted_image_hides_the_faces_that_count_and_shows_no_boxes(detector: FaceDetector) -> None:
    original, _ = read_upload(PHOTO, **LIMITS)
    hopper = detect_image(detector, PHOTO, "original", **LIMITS)
    x1, y1, x2, y2 = (round(float(side)) for side in hopper.faces.boxes_xyxy[0])
    redacted = hopper.drawn(original, 0.5, "pixelate")
    np.testing.assert_array_equal(redacted[:80], original[:80])  # far from the face
    assert (redacted[y1:y2, x1:x2] != original[y1:y2, x1:x2]).mean() > 0.8
    np.testing.assert_array_equal(hopper.drawn(original, 0.9999, "pixelate"), original)  # no face counts


def test_a_dropped_image_gives_everything_the_page_shows(actions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image, shown, summary, rows, content = actions.find(str(PHOTO), "original", 0.5, "none")
    assert "1 face<" in summary and "512 × 600 px" in summary and Image.open(shown).size == (512, 600)
    [face] = content["images"][0]["detections"]
    keys = ("score", "x1", "y1", "x2", "y2", "width", "height")
    assert [[float(value) for value in row] for row in rows] == [[1, *(face[key] for key in keys)]]
    # The slider does not run the network.
    monkeypatch.setattr(actions, "detector", None)
    _, summary, rows, content = actions.redraw(image, 1.0, "none")
    assert "0 faces" in summary and not rows and content["images"][0]["faces"] == 0
    _, summary, rows, _ = actions.redraw(image, 0.12, "none")
    assert len(rows) == image.count(0.12) > 1 and f"{image.count(0.12):,} faces" in summary


def test_images_keep_their_color_profile(actions: Any, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open(PHOTO).resize((128, 150)).save(tmp_path / "profiled.png", icc_profile=profile)
    image, shown, *_ = actions.find(str(tmp_path / "profiled.png"), "original", 0.5, "blur")
    for path in (shown, actions.save_image(image, 0.5, "blur"), actions.save_image(image, 0.5, "none")):
        assert Image.open(path).info["icc_profile"] == profile


def test_a_bad_image_is_a_message_in_the_page(actions: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
    Image.new("L", (4000, 3000)).save(tmp_path / "wide.png")
    for reason, name in (
        ("the file is cut short", "cut.jpg"), ("12 million pixels; at most 10", "wide.png"),
        ("no longer kept here", "<img src=x>.jpg"),
    ):  # fmt: skip
        image, shown, summary, rows, content = actions.find(str(tmp_path / name), "original", 0.5, "none")
        assert not (image or shown or rows or content)
        assert 'role="alert"' in summary and reason in unescape(summary)
        # Its owner's name for it, not where uploads are.
        assert name in unescape(summary) and str(tmp_path) not in summary and "<img" not in summary
    assert "Drop an image" in actions.find(None, "original", 0.5, "none")[2]


def test_several_images_are_counted_and_bad_ones_named(actions: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
    twice = tmp_path / "twice.png"
    photo = np.asarray(Image.open(PHOTO))
    Image.fromarray(np.concatenate([photo, photo[:, ::-1]], axis=1)).save(twice)
    steps = list(actions.find_several([str(PHOTO), str(tmp_path / "cut.jpg"), str(twice)], "original", 0.5, "none"))
    assert len(steps) == 4 and "1 of 3 images" in steps[1][2]
    found, gallery, summary, content = steps[-1]
    assert [caption for _, caption in gallery] == ["grace_hopper.jpg: 1 face", "twice.png: 2 faces"]
    assert "3 faces" in summary and "cut.jpg cannot be read" in summary
    assert [image["faces"] for image in content["images"]] == [1, 2] and "cut short" in content["problems"][0]
    _, summary, content = actions.redraw_several(found, 1.0, "none")
    assert "0 faces" in summary and [image["faces"] for image in content["images"]] == [0, 0]
    [(_, _, summary, _)] = actions.find_several([str(PHOTO)] * 4, "original", 0.5, "none")
    assert "4 images are more than 3 at a time" in summary


def test_what_is_saved_is_whole(actions: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.open(PHOTO).resize((1792, 2100)).save(large)
    found, shown, _, _, content = actions.find(str(large), "vga640", 0.5, "none")
    with Image.open(shown) as image:
        assert image.height == 1600  # on the page it is shrunk
    saved = Path(actions.save_image(found, 0.5, "pixelate"))
    assert saved.name == "large_pixelate.jpg" and Image.open(saved).size == (1792, 2100)
    saved = Path(actions.save_json(content))
    assert saved.name == "large.json" and json.loads(saved.read_text(encoding="utf-8")) == content
    large.unlink()  # keep_minutes have passed
    for image, reason in ((found, "no longer kept here"), (None, "drop one first")):
        with pytest.warns(match=reason):
            assert actions.save_image(image, 0.5, "none") is None
    with pytest.warns(match="no detections"):
        assert actions.save_json(None) is None


def test_a_video_comes_back_with_its_faces(actions: Any, tmp_path: Path) -> None:
    """Its first part: max_video_seconds is below its length."""
    write_video(tmp_path / "video.mp4", 8)
    *_, (shown, summary, content) = actions.find_in_video(str(tmp_path / "video.mp4"), "original", 0.5, "none")
    assert "1 face<" in summary and "6 at 25/s" in summary and "Only the first 0.22 seconds" in summary
    assert content["video"] == "video.mp4" and content["cut"]
    assert [frame["frame"] for frame in content["frames"]] == list(range(6))
    assert [frame["time_seconds"] for frame in content["frames"]] == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert all(len(frame["detections"]) == 1 for frame in content["frames"])
    import av

    with av.open(shown) as container:
        assert sum(1 for _ in container.decode(container.streams.video[0])) == 6


def test_what_is_no_video_or_is_stopped_leaves_nothing(
    actions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "video.mp4", 6)
    (tmp_path / "notes.mp4").write_text("no video")
    *_, (shown, summary, _) = actions.find_in_video(str(tmp_path / "notes.mp4"), "original", 0.5, "none")
    assert shown is None and 'role="alert"' in summary
    assert "notes.mp4" in summary and str(tmp_path) not in summary
    monkeypatch.setattr("fanet_lightning.app.actions.REPORT_SECONDS", 0.0)
    running = actions.find_in_video(str(tmp_path / "video.mp4"), "original", 0.5, "none")
    next(running)
    assert "1 of 6 frames" in next(running)[1]
    running.close()  # what Gradio does when Stop is pressed
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


# The server.


def direct(request: urllib.request.Request | str) -> Any:
    """Past any proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300)


def upload(address: str, content: bytes) -> Any:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + content + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return direct(urllib.request.Request(f"{address}gradio_api/upload", body, headers))


def test_the_page_is_for_this_computer_and_refuses_large_uploads_and_other_files(address: str) -> None:
    with direct(address) as answer:
        text = answer.read().decode()
    assert address.startswith("http://127.0.0.1:") and "Face detection" in text
    assert "fonts.googleapis" not in text and '"analytics_enabled":false' in text.replace(" ", "")
    with upload(address, b"0" * 500_000) as answer:
        [path] = json.load(answer)
    assert Path(path).stat().st_size == 500_000
    with pytest.raises(urllib.error.HTTPError) as caught:
        upload(address, b"0" * 600_000)
    assert caught.value.code == 413 and b"maximum allowed size" in caught.value.read()
    with pytest.raises(urllib.error.HTTPError) as caught:
        direct(f"{address}gradio_api/file={PHOTO}")
    assert caught.value.code in (403, 404)


def test_uploads_are_deleted_in_time_and_when_the_server_ends(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="the page is an extra: pip install 'fanet-lightning[app]'")
    monkeypatch.setattr("fanet_lightning.app.page.CHECK_FILES_SECONDS", 1)
    before = dict(os.environ)
    with app.serving(detector, settings_of("port=0", "keep_minutes=0.02")) as url:
        folder = Path(os.environ[app.UPLOAD_FOLDER_VARIABLE])
        with upload(url, b"somebody's photograph") as answer:
            path = Path(json.load(answer)[0])
        assert folder in path.parents
        deadline = time.monotonic() + 300
        while path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with upload(url, b"another one"):
            pass
    assert not folder.exists() and dict(os.environ) == before


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("port=99999", "port=99999: give a whole number from 0 to 65535"),
        ("max_images=1.5", "max_images=1.5: give a whole number of at least 1"),
        ("protocol.kind=sideways", "protocol.kind=sideways"),
        ("host=no.such.host.invalid", "host=no.such.host.invalid cannot be opened"),
    ],
)
def test_bad_keys_are_one_clear_line(word: str, message: str) -> None:
    refused(re.escape(message), main, ["port=0", word])


def test_a_taken_port_is_said_and_a_missing_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(rf"port={port} on host=127\.0\.0\.1 cannot be opened", main, [f"port={port}"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(r"needs the package gradio; pip install 'fanet-lightning\[app\]'", main, ["port=0"])


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_program_serves_until_it_is_asked_to_end(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page is an extra: pip install 'fanet-lightning[app]'")
    nowhere = dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, "TMPDIR": str(tmp_path), **nowhere}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "fanet_lightning.app", "port=0"], env=environment, **pipes)
    patience = threading.Timer(600, process.kill)
    patience.start()
    try:
        line = process.stdout.readline()
        url = line.split()[2]
        assert url.startswith("http://127.0.0.1:") and "fanet_light" in line
        with upload(url, b"somebody's photograph") as answer:
            path = Path(json.load(answer)[0])
        assert tmp_path in path.parents and path.exists()
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=300)
    finally:
        patience.cancel()
        process.kill()
    assert process.returncode == 0, errors
    assert "everything that was dropped on the page is deleted" in out
    assert not list(tmp_path.glob("fanet_app_*"))
