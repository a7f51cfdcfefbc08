"""``python -m fanet_lightning.detect`` on real files."""

import functools
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fanet_lightning import FaceDetector
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import locked
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.detect import detector as detector_module
from fanet_lightning.detect import run as running
from fanet_lightning.detect.__main__ import main
from fanet_lightning.detect.inputs import Item
from fanet_lightning.detect.outputs import Results, Saving, crop
from fanet_lightning.detect.stream import Progress, StreamSettings
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.wider_face.predictions import read_predictions
from tests.data.download_server import Answer, file_server
from tests.detect.video_files import write_images

# The photograph's one face, in the image of 256 × 300 pixels that the tests use.
FACE_XYXY = (96, 61, 176, 165)
OPENED = functools.cache(detector_module.open_detector)


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small command's time is opening the model."""
    monkeypatch.setattr(detector_module, "open_detector", OPENED)


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A photograph with one face (Grace Hopper), which comes with matplotlib.

    The shipped model takes the medals at its lower border for a face; they are covered.
    """
    import matplotlib.cbook as cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB").resize((256, 300))
    portrait.paste((40, 40, 60), (0, 285, 256, 300))
    return portrait


@pytest.fixture
def photos(tmp_path: Path, photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three images in ``photos``: of one face, of two, and in a sub-folder of none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    photograph.save(folder / "one.jpg", quality=95)
    both = Image.new("RGB", (512, 300))
    both.paste(photograph, (0, 0))
    both.paste(photograph, (256, 0))
    both.save(folder / "two.png")
    Image.new("RGB", (120, 90), (30, 90, 200)).save(folder / "sub/none.jpg")
    monkeypatch.chdir(tmp_path)
    return folder


def read_json(out: str | Path) -> dict[str, Any]:
    return dict(json.loads((Path(out) / "detections.json").read_text()))


def by_name(content: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Image → its boxes, x y width height."""
    found: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation["bbox"])
    return {image["file_name"]: found[image["id"]] for image in content["images"]}


def files_of(folder: str | Path) -> set[str]:
    folder = Path(folder)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def overlap(box_xywh: list[float], face_xyxy: tuple[int, ...]) -> float:
    x, y, w, h = box_xywh
    x1, y1, x2, y2 = face_xyxy
    inside = max(0.0, min(x + w, x2) - max(x, x1)) * max(0.0, min(y + h, y2) - max(y, y1))
    return inside / (w * h + (x2 - x1) * (y2 - y1) - inside)


def test_everything_that_can_be_saved(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "notes.txt").write_text("no image")
    assert main(["source=photos", "save=images,json,txt,crops"]) == 0
    out = Path("outputs/detect/photos")
    assert re.search(rf"\n3 images, 3 faces; [\d.]+ images/s; the results are in {out}\n", capsys.readouterr().out)
    content = read_json(out)
    assert content["complete"] is True and content["failed"] == []
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}
    assert sizes == {"one.jpg": (256, 300), "sub/none.jpg": (120, 90), "two.png": (512, 300)}
    boxes = by_name(content)
    assert [len(boxes[name]) for name in ("one.jpg", "two.png", "sub/none.jpg")] == [1, 2, 0]
    assert overlap(boxes["one.jpg"][0], FACE_XYXY) > 0.7
    # The very numbers of the Python API.
    alone = FaceDetector.from_pretrained(precision=content["settings"]["precision"])
    expected = alone.detect(photos / "one.jpg", threshold=0.5)
    (x1, y1, x2, y2) = expected.boxes_xyxy[0].double().tolist()
    assert boxes["one.jpg"][0] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-9)
    (annotation,) = (a for a in content["annotations"] if a["image_id"] == 1)
    assert annotation["score"] == pytest.approx(float(expected.scores[0]), abs=1e-9)
    assert annotation["area"] == pytest.approx((x2 - x1) * (y2 - y1)) and annotation["iscrowd"] == 0
    assert content["made_by"]["checkpoint"] == "fanet_light" and content["settings"]["threshold"] == 0.5
    # The scorer reads the texts.
    packed = read_predictions(out / "txt", ["one", "two"], known_ids=["one", "two", "sub/none"])
    assert packed.starts.tolist() == [0, 1, 3]
    assert packed.boxes_xywh[0] == pytest.approx(boxes["one.jpg"][0], abs=0.006)
    assert (out / "txt/sub/none.txt").read_text() == "none\n0\n"
    score = f"{annotation['score']:.2f}"
    with Image.open(out / f"crops/one_0_{score}.jpg") as cropped:
        assert abs(cropped.width - (x2 - x1)) < 2 and abs(cropped.height - (y2 - y1)) < 2
    assert len(list((out / "crops").iterdir())) == 3
    # Size and format stay.
    with Image.open(out / "images/two.png") as drawn:
        assert drawn.format == "PNG" and drawn.size == (512, 300)
    with Image.open(out / "images/sub/none.jpg") as drawn:
        assert drawn.format == "JPEG"
    assert {path.name for path in out.iterdir()} == {
        "images", "txt", "crops", "detections.json", "done.jsonl", ".lock", ".lock.holder"
    }  # fmt: skip


def test_what_is_saved_is_as_asked(photos: Path) -> None:
    words = ["source=photos/one.jpg", "save=images"]
    assert main([*words, "out=a"]) == 0
    assert files_of("a/images") == {"one.jpg"} and not (Path("a") / "detections.json").exists()
    original, drawn = read_image_rgb(photos / "one.jpg"), read_image_rgb("a/images/one.jpg")
    changed = np.abs(drawn.astype(int) - original).max(axis=2) > 60
    assert changed.any() and not changed[:40].any(), "a frame around the face"
    assert main([*words, "scores=true", "bar=true", "out=e"]) == 0
    scored = read_image_rgb("e/images/one.jpg")
    assert scored.shape[0] == 300 and scored.shape[1] > 256
    assert (np.abs(scored[40:, :256].astype(int) - drawn[40:]).max(axis=2) > 60).sum() > 100, "digits"
    assert main([*words, "draw=false", "out=b"]) == 0
    assert np.abs(read_image_rgb("b/images/one.jpg").astype(int) - original).max() < 40
    assert main(["source=photos/one.jpg", "save=[json]", "threshold=1", "out=c"]) == 0
    assert read_json("c")["annotations"] == []
    assert files_of("c") == {"detections.json", "done.jsonl", ".lock", ".lock.holder"}


def test_words_that_are_no_keys_are_sources(photos: Path) -> None:
    shutil.copy("photos/one.jpg", os.fsencode(photos.parent) + b"/a, b\xe9.jpg")  # a name that is no text
    name = os.fsdecode(b"a, b\xe9.jpg")
    assert main([name, "save=images,txt,json", "source=photos/one.jpg", "out=a"]) == 0
    assert list(by_name(read_json("a"))) == [name, "one.jpg"] and Path("a/images", name).exists()
    with pytest.raises(InputError, match=r"source=absent\.jpg"):
        main(["photos", "absent.jpg", "out=b"])
    with pytest.raises(InputError, match="ftp://"):
        main(["ftp://example.org/a.jpg?size=1", "out=b"])
    assert not Path("b").exists()


def detail(image_rgb: np.ndarray) -> float:
    """How much pixels differ from their neighbours, in gray levels."""
    return float(np.abs(np.diff(image_rgb.astype(int), axis=1)).mean())


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_redacted_faces_have_no_detail(photos: Path, kind: str) -> None:
    assert main(["source=photos", f"redact={kind}", "save=images,json,crops", "out=safe"]) == 0
    assert len(read_json("safe")["annotations"]) == 3
    x1, y1, x2, y2 = FACE_XYXY
    face = detail(read_image_rgb(photos / "one.jpg")[y1:y2, x1:x2])
    assert detail(read_image_rgb("safe/images/one.jpg")[y1:y2, x1:x2]) < face / 2
    for name in files_of("safe/crops"):
        assert detail(read_image_rgb(f"safe/crops/{name}")) < face / 2, name
    drawn, original = read_image_rgb("safe/images/two.png"), read_image_rgb(photos / "two.png")
    assert drawn.shape == original.shape, "neither boxes nor a bar unless asked"
    assert (drawn[:20] == original[:20]).all() and (drawn[61:165, 96:176] != original[61:165, 96:176]).any()
    assert main(["source=photos/one.jpg", f"redact={kind}", "draw=true", "save=images", "out=both"]) == 0
    drawn = read_image_rgb("both/images/one.jpg")
    assert drawn.shape == (300, 256, 3) and detail(drawn[50:175, 85:185]) > detail(
        read_image_rgb("safe/images/one.jpg")[50:175, 85:185]
    )


def test_solid_regions_a_cover_and_what_is_left(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["source=photos/two.png", "save=images,crops", "redact_regions=[[0,0,40,20]]"]
    assert main([*words, "redact=solid", "redact_scale=2", "out=a"]) == 0
    hidden, original = read_image_rgb("a/images/two.png"), read_image_rgb(photos / "two.png")
    assert (hidden[:20, :40] == 0).all() and (hidden[45:180, 75:195] == 0).all()
    assert (hidden[20:30, 230:290] == original[20:30, 230:290]).all()
    assert all(read_image_rgb(path).max() < 10 for path in Path("a/crops").iterdir())
    Image.new("RGB", (5, 5), (0, 255, 0)).save("cover.png")
    assert main([*words, "redact=image:cover.png", "redact_shape=ellipse", "out=b"]) == 0
    covered = read_image_rgb("b/images/two.png")
    assert (covered[110, 136] == (0, 255, 0)).all() and (covered[52, 88] == original[52, 88]).all()
    capsys.readouterr()
    # Faces that are left are counted; another cover is another result.
    Image.new("RGB", (5, 5), (0, 0, 255)).save("cover.png")
    assert main([*words, "redact=image:cover.png", "redact_shape=ellipse", "out=b", "threshold=1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"starting over: .*\(threshold, redact\)", said)
    assert int(re.findall(r"0\.15 or more that were left: (\d+);", said)[0]) >= 2
    assert (read_image_rgb("b/images/two.png")[:20, :40] == (0, 0, 255)).all()


def test_which_faces_count(photos: Path, photograph: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["source=photos", "protocol=original", "save=images,json", "out=o"]

    def faces(*more: str) -> dict[str, int]:
        assert main([*words, *more]) == 0
        return {name: len(boxes) for name, boxes in by_name(read_json("o")).items()}

    photograph.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.jpg", quality=95)
    assert faces() == {"one.jpg": 1, "sub/none.jpg": 0, "turned.jpg": 0, "two.png": 2}
    assert faces("rotate=auto", "max_faces=1") == {"one.jpg": 1, "sub/none.jpg": 0, "turned.jpg": 1, "two.png": 1}
    assert overlap(by_name(read_json("o"))["turned.jpg"][0], (61, 80, 165, 160)) > 0.7
    assert faces("threshold={0: 0.5, 80: 1}") == dict.fromkeys(("one.jpg", "sub/none.jpg", "turned.jpg", "two.png"), 0)
    assert "resuming: 4 of 4" not in capsys.readouterr().out
    assert sum(faces("threshold={0: 0.5, 80: 1}").values()) == 0
    assert "resuming: 4 of 4" in capsys.readouterr().out
    # No face anywhere, and what is not redacted is told.
    assert sum(faces("min_face=200", "redact=blur").values()) == 0
    assert int(re.findall(r"0\.15 or more that were left: (\d+);", capsys.readouterr().out)[0]) >= 3
    np.testing.assert_array_equal(read_image_rgb("o/images/two.png"), read_image_rgb(photos / "two.png"))


def test_boxes_refer_to_the_upright_image(photos: Path, photograph: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90° clockwise
    photograph.transpose(Image.Transpose.ROTATE_90).save("turned.jpg", quality=95, exif=exif)
    assert main(["source=turned.jpg", "out=o"]) == 0
    content = read_json("o")
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (256, 300)
    assert overlap(by_name(content)["turned.jpg"][0], FACE_XYXY) > 0.7
    with Image.open("o/images/turned.jpg") as drawn:
        assert drawn.height == 300 and 0x0112 not in drawn.getexif()


def test_bad_files_are_named_and_the_others_done(
    photos: Path, photograph: Image.Image, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanet_lightning.data.images.heic_plug_in", lambda: False)
    whole = (photos / "one.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    with zipfile.ZipFile(photos / "packed.jpg", "w") as archive:
        archive.writestr("a", "b")
    (photos / "phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    photograph.save(photos / "moving.gif", save_all=True, append_images=[Image.new("RGB", (256, 300), color)
                    for color in ("red", "blue")])  # fmt: skip
    assert main(["source=photos", "out=o"]) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert [line.split("photos/")[1].split(" ")[0] for line in errors] == [
        "cut.jpg", "empty.png", "packed.jpg", "phone.heic"
    ]  # fmt: skip
    reasons = ("cut short", "is empty", "not an image file", "pip install pillow-heif")
    for line, reason in zip(errors, reasons, strict=True):
        assert reason in line
    assert "5 images, 4 faces, 4 could not be read; " in said.out and "Traceback" not in said.err
    content = read_json("o")
    assert [entry["file_name"] for entry in content["failed"]] == ["cut.jpg", "empty.png", "packed.jpg", "phone.heic"]
    assert content["complete"] is True
    assert files_of("o/images") == {"one.jpg", "two.png", "sub/none.jpg", "dot.png", "moving.png"}
    # Nothing but bad ones is a failure as well, and no image at all a mistake.
    assert main(["source=photos/cut.jpg", "out=p"]) == 1
    assert "0 images, 0 faces, 1 could not be read; the results are in p\n" in capsys.readouterr().out


def test_what_is_done_is_skipped(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["source=photos", "save=images,json,crops", "out=o"]
    assert main(words) == 0
    first, drawn = read_json("o"), (Path("o/images/one.jpg"), Path("o/images/two.png"))
    for path in drawn:
        path.write_bytes(b"left alone")
    capsys.readouterr()
    assert main(words) == 0
    assert "resuming: 3 of 3 inputs done already" in capsys.readouterr().out
    assert [path.read_bytes() for path in drawn] == [b"left alone"] * 2
    assert read_json("o") | {"made_by": 0} == first | {"made_by": 0}
    # One that is new, one that has changed, one whose results are gone.
    (photos / "new.jpg").write_bytes((photos / "one.jpg").read_bytes())
    Image.new("RGB", (100, 50)).save(photos / "two.png")
    Path("o/images/sub/none.jpg").unlink()
    assert main(words) == 0
    assert "resuming: 1 of 4 inputs done already" in capsys.readouterr().out
    content = read_json("o")
    assert [image["file_name"] for image in content["images"]] == ["new.jpg", "one.jpg", "sub/none.jpg", "two.png"]
    assert by_name(content)["two.png"] == [] and drawn[0].read_bytes() == b"left alone"
    assert {name.split("_")[0] for name in files_of("o/crops")} == {"new", "one"}, "two.png shows no face any more"
    assert main([*words, "resume=false"]) == 0
    assert "done already" not in capsys.readouterr().out and drawn[0].read_bytes() != b"left alone"


def test_other_settings_start_over_and_leave_no_faces_behind(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["source=photos", "save=crops,json", "out=o"]) == 0
    (Path("o/crops") / "mine.jpg").write_bytes(b"")
    assert len(files_of("o/crops")) == 4
    assert main(["source=photos", "redact=blur", "save=images", "out=o"]) == 0
    assert "starting over: the results in o are of other settings (save, redact, draw)" in capsys.readouterr().out
    assert files_of("o/crops") == {"mine.jpg"}, "the faces were shown there; what others left stays"
    assert not Path("o/detections.json").exists(), "it was about what has been removed"
    # What a killed process left without a line in the journal goes as well.
    Path("o/crops/one_0_0.99.jpg").write_bytes(b"a face")
    assert main(["source=photos", "redact=blur", "save=json", "out=o"]) == 0
    assert files_of("o/crops") == {"mine.jpg"} and not files_of("o/images")


def test_results_of_other_settings_and_other_inputs_stay(photos: Path) -> None:
    words = ["source=photos", "save=images,crops,txt", "out=o"]
    assert main(words) == 0
    (photos / "two.png").rename("two.png")
    before = files_of("o")
    with pytest.raises(InputError, match=r"^out=o: holds results of other settings \(redact, .*two\.png; give"):
        main([*words, "redact=blur"])
    with pytest.raises(InputError, match=r"holds results of other settings \(threshold\), e\.g\. of sub/none\.jpg"):
        main(["source=photos/one.jpg", *words[1:], "threshold=0.4"])
    assert files_of("o") == before
    # Without results there is nothing to protect.
    for name in ("images/two.png", *(name for name in before if name.startswith(("crops/two", "txt/two")))):
        Path("o", name).unlink()
    assert main([*words, "redact=blur"]) == 0
    assert {name for name in files_of("o") if name.startswith("images")} == {"images/one.jpg", "images/sub/none.jpg"}
    assert main(["source=photos/one.jpg", "save=images,txt,json", "out=o", "resume=false"]) == 0
    assert {name for name in files_of("o") if "/" in name} == {"images/one.jpg", "txt/one.txt"}
    assert list(by_name(read_json("o"))) == ["one.jpg"]


def test_several_sources_in_one_folder(photos: Path) -> None:
    Image.new("RGB", (64, 64)).save("three.png")
    Image.new("RGB", (64, 64)).save("two.webp")
    Path("other").mkdir()
    Image.new("RGB", (64, 64)).save("other/one.jpg")
    words = ["save=images,json,txt", "out=o"]
    assert main(["source=photos", *words]) == 0
    assert main(["source=three.png", *words]) == 0
    assert by_name(read_json("o")).keys() == {"three.png", "one.jpg", "two.png", "sub/none.jpg"}
    before = {name: Path("o", name).read_bytes() for name in files_of("o") if "/" in name}
    assert {f"images/{name}" for name in by_name(read_json("o"))} == {n for n in before if n.startswith("images")}
    for source, name in (("other/one.jpg", "one.jpg"), ("two.webp", "two.png")):  # txt/two.txt
        with pytest.raises(InputError, match=f"^out=o: the results of {source} would overwrite .*{name}; give another"):
            main([f"source={source}", *words])
    assert before == {name: Path("o", name).read_bytes() for name in files_of("o") if "/" in name}
    # What turned bad has lost its results, and does not come back with the next run.
    Path("three.png").write_bytes(b"bad")
    assert main(["source=three.png", *words]) == 1
    assert main(["source=photos", *words]) == 0
    assert by_name(read_json("o")).keys() == {"one.jpg", "two.png", "sub/none.jpg"}


# Root reads everything; without these capabilities it is a person like any other.
NO_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(NO_RIGHTS) and shutil.which("setpriv") is None, reason="root without setpriv reads everything")
def test_nothing_stays_unredacted_in_silence(photos: Path) -> None:
    """What cannot be looked at in a folder or in a list is named, and the exit code is 1."""
    for name in ("sub/closed.jpg", "locked/in.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / "one.jpg", photos / name)
    for name, target in {"dangling.jpg": "gone.jpg", "sub/up": "..", "lost.mp4": "gone.mp4"}.items():
        (photos / name).symlink_to(target)
    os.mkfifo(photos / "pipe.jpg")
    (photos / "sub/closed.jpg").chmod(0)
    (photos / "locked").chmod(0)
    listed = ["dangling.jpg", "locked/in.jpg", "sub/closed.jpg", "lost.mp4", "one.jpg"]
    (photos / "list.txt").write_text("\n".join(listed))
    program = (
        "import sys; from fanet_lightning.detect.__main__ import main\n"
        "for number, source in enumerate(('photos', 'photos/list.txt')):\n"
        "    print('code', main([f'source={source}', 'redact=blur', 'protocol=original', f'out=o{number}']))\n"
    )
    done = subprocess.run([*NO_RIGHTS, sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    (photos / "locked").chmod(0o700)  # so that pytest can remove it
    assert done.stdout.count("code 1\n") == 2, done.stdout + done.stderr
    failed = {"dangling.jpg", "lost.mp4", "pipe.jpg", "locked", "sub/closed.jpg"}
    for out, names in (("o0", failed), ("o1", {*listed} - {"one.jpg"})):
        content = read_json(out)
        assert {entry["file_name"] for entry in content["failed"]} == names, out
        assert content["complete"] is True and "one.jpg" in by_name(content)
    assert done.stderr.count("error: ") == len(failed) + len(listed) - 1


def gray_profile() -> bytes:
    """Of ICC, version 2. Linear light: a value of 128 is half of white, 188 in sRGB."""
    d50 = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    white, curve = b"XYZ \0\0\0\0" + d50, b"curv\0\0\0\0\0\0\0\0"
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 12)
    header = struct.pack(">I4xI4s4s4s12x4s28x", 188, 0x02400000, b"prtr", b"GRAY", b"XYZ ", b"acsp")
    return header + d50 + bytes(48) + table + white + curve


def test_colors_are_shown_as_before(photos: Path, photograph: Image.Image) -> None:
    """RGB keeps its profile in whatever is written; gray becomes sRGB by its own."""
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("jpg", "png", "webp", "tiff"):
        photograph.save(f"in.{suffix}", icc_profile=own, quality=95)
    Image.new("L", (60, 50), 128).save("gray.jpg", icc_profile=gray_profile(), quality=100)
    Image.new("LA", (60, 50), (128, 255)).save("gray_alpha.png", icc_profile=gray_profile())
    Image.new("L", (60, 50), 128).save("gray_of_rgb.jpg", icc_profile=own, quality=100)
    Image.new("L", (60, 50), 128).save("gray_damaged.png", icc_profile=gray_profile()[:150])
    assert main(["source=*.*", "save=images,crops", "protocol=original", "out=o", "redact=pixelate"]) == 0
    written = [Path(f"o/images/in.{suffix}") for suffix in ("jpg", "png", "webp", "tiff")]
    crops = sorted(Path("o/crops").glob("*.jpg"))
    assert len(crops) == 4 and all(Image.open(path).info.get("icc_profile") == own for path in [*written, *crops])
    np.testing.assert_array_equal(read_image_rgb("o/images/in.png")[:40], np.asarray(photograph)[:40])
    for name, profile, value in (
        ("gray.jpg", None, 188), ("gray_alpha.png", None, 188), ("gray_of_rgb.jpg", own, 128),
        ("gray_damaged.png", None, 128),
    ):  # fmt: skip
        with Image.open(f"o/images/{name}") as image:
            assert image.info.get("icc_profile") == profile, name
            np.testing.assert_allclose(np.asarray(image.convert("RGB"))[25, 30], value, atol=2, err_msg=name)


def test_a_journal_does_not_reach_outside(photos: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.jpg"
    precious.write_bytes(b"x")
    item = Item(photos / "one.jpg", "one.jpg", "one")
    with Results(photos, {"a": 1}, [item]) as results:
        results.add(item, {"files": ["one.jpg", "../precious.jpg", str(precious)]})
        assert results.is_done(item) and not results.is_done(Item(photos / "two.png", "one.jpg", "one"))
    with Results(photos, {"a": 1}, [item], resume=False):
        assert precious.exists() and not item.location.exists()


def heed_interrupts() -> None:
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(photos: Path, tmp_path: Path) -> None:
    larger = Image.open(photos / "one.jpg").resize((512, 600))
    for number in range(30):
        larger.save(photos / f"n{number:02}.jpg")
    command = [sys.executable, "-m", "fanet_lightning.detect", "source=photos", "save=images,json", "out=o"]
    journal = Path("o/done.jsonl")

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.is_file() else 0

    for kind in (signal.SIGKILL, signal.SIGINT):
        before = lines()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=heed_interrupts,
        )  # fmt: skip
        wait_for(lambda before=before: lines() > before + 2)
        process.send_signal(kind)
        _, stderr = process.communicate(timeout=300)
        assert "Traceback" not in stderr
        if kind == signal.SIGKILL:
            Path("o/.unfinished").mkdir(exist_ok=True)
            Path("o/.unfinished/half").write_bytes(b"half an image")
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted; what is done is kept, and the same command resumes"
    content = read_json("o")
    done = len(content["images"])
    assert content["complete"] is False and 5 <= done == lines() - 1 < 33
    # What was found when it was interrupted was still written, and nothing half.
    assert len(files_of("o/images")) == done
    for name in files_of("o/images"):
        read_image_rgb(f"o/images/{name}")
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0 and f"resuming: {done} of 33 inputs done already" in finished.stdout
    assert len(read_json("o")["images"]) == 33 and read_json("o")["complete"] is True
    assert not Path("o/.unfinished").exists()


def test_an_image_over_http_and_lists(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_server() as server:
        server.serve("/p/one.jpg?a=b", Answer((photos / "one.jpg").read_bytes()))
        assert main([f"source={server.url}/p/one.jpg?a=b", "out=o"]) == 0
        assert overlap(by_name(read_json("o"))["one.jpg"][0], FACE_XYXY) > 0.7
        assert files_of("o/images") == {"one.jpg"}
        Path("list.txt").write_text(f"photos/two.png\n# more\n{server.url}/gone.jpg\nphotos/absent.jpg\n")
        capsys.readouterr()
        assert main(["source=list.txt", "save=json", "out=p"]) == 1
        said = capsys.readouterr()
        assert "/gone.jpg answers 404 Not Found" in said.err and "photos/absent.jpg cannot be read" in said.err
        assert "1 image, 2 faces, 2 could not be read" in said.out


MISTAKES = {
    "": "a source must be given",
    "source=nowhere": "source=nowhere",
    "source=photos save=pictures": "save=pictures",
    "source=photos threshold={64:0.3}": "threshold={64: 0.3}",
    "source=photos threshold=[1]": "threshold=[1]",
    "source=photos max_faces=0": "max_faces=0",
    "source=photos draw=3": "draw=3",
    "source=photos redact=black": "redact=black",
    "source=photos redact=image:no.png": "redact=image:no.png: no.png cannot be read",
    "source=photos redact=blur redact_scale=0.5": "redact_scale=0.5",
    "source=photos redact=blur redact_regions=[[1,2,3]]": "redact_regions: [1, 2, 3]",
    "source=photos redact=blur redact_from=5 redact_to=2": "redact_from=5 redact_to=2",
    "source=photos redact_regions=[[1,2,3,4]]": "redact_from and redact_to need redact=",
    "source=photos redact_shape=ellipse": "redact_shape, redact_scale",
    "source=photos redact_scale=1.5": "need redact=",
    "source=photos resume=perhaps": "resume=perhaps",
    "source=photos every=0": "every=0",
    "source=photos max_frames=0": "max_frames=0",
    "source=photos max_download_mb=-1": "max_download_mb",
    "source=photos/one.jpg out=photos/one.jpg": "choose another out",
    "source=photos checkpoint=nothing.ckpt": "nothing.ckpt",
}


def test_mistakes_are_told_before_torch_is_loaded(photos: Path) -> None:
    code = (
        "import sys; from fanet_lightning.detect.__main__ import main\n"
        "for words in sys.argv[1:]:\n"
        "    try: main(words.split())\n"
        "    except ValueError as error: print('torch' in sys.modules, error)"
    )
    command = [sys.executable, "-c", code, *MISTAKES]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["False"] * (len(MISTAKES) - 1) + ["True"]
    for line, message in zip(said, MISTAKES.values(), strict=True):
        assert message in line
    assert not Path("outputs").exists()


def test_inputs_are_never_overwritten(photos: Path) -> None:
    photos.rename("images")
    before = {name: Path("images", name).read_bytes() for name in files_of("images")}
    for source in ("images", "images/sub/none.jpg"):
        with pytest.raises(InputError, match=r"results are written into .*images, which contains inputs; give another"):
            main([f"source={source}", "out=."])
    assert before == {name: Path("images", name).read_bytes() for name in files_of("images")}


def test_exit_codes_of_the_real_command(photos: Path) -> None:
    run = [sys.executable, "-m", "fanet_lightning.detect"]
    mistaken = subprocess.run([*run, "source=photos/*.gif"], capture_output=True, text=True)
    assert mistaken.returncode == 2 and mistaken.stdout == ""
    assert re.fullmatch(r"error: source=photos/\*\.gif: no file matches; give.*\n", mistaken.stderr)
    asked = subprocess.run([*run, "--help"], capture_output=True, text=True)
    assert asked.returncode == 0 and "IMAGE|FOLDER" in asked.stdout and "max_download_mb: 50" in asked.stdout


def test_an_out_that_is_full_or_in_use(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(Path("o")), pytest.raises(InputError, match="o is in use by a run of detect"):
        main(["source=photos", "out=o"])
    monkeypatch.setattr(running, "write_image", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        main(["source=photos", "save=images", "out=o"])


def test_an_image_that_the_network_refuses_is_one_of_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        Image.new("RGB", (40 + index, 30)).save(tmp_path / f"{index:03}.png")
    items = [Item(path, path.name, path.stem) for path in sorted(tmp_path.glob("*.png"))]

    def find(image_rgb: np.ndarray) -> Detections:
        if image_rgb.shape[1] == 42:
            raise InputError("an image of 30 × 42 pixels does not fit into memory")
        return Detections(torch.zeros(0, 4), torch.zeros(0))

    summary = running.Summary()
    with Results(tmp_path / "o", {}, []) as results:
        running._detect_images(items, find, results, Saving(("json",)), (1, 1.0), 2, summary)
    assert [entry["width"] for entry in results.entries.values()] == [40, 41, *range(43, 52)]
    assert list(summary.failed) == ["002.png"]
    assert "error: an image of 30 × 42 pixels does not fit into memory" in capsys.readouterr().err


def test_crops_have_at_least_a_pixel_and_stay_inside() -> None:
    image = np.arange(20 * 30 * 3, dtype=np.int64).reshape(20, 30, 3).astype(np.uint8)
    for box, expected in (
        ((2.2, 3.7, 5.1, 8.0), (slice(3, 8), slice(2, 6))),
        ((-3.0, -1.0, 4.0, 2.0), (slice(0, 2), slice(0, 4))),
        ((25.0, 15.0, 40.0, 40.0), (slice(15, 20), slice(25, 30))),
        ((7.0, 7.0, 7.0, 7.0), (slice(7, 8), slice(7, 8))),
        ((30.0, 20.0, 30.0, 20.0), (slice(19, 20), slice(29, 30))),
    ):
        assert (crop(image, np.array(box)) == image[expected]).all(), box


# Videos


def write_video(path: Path, photograph: Image.Image, frames: int = 8) -> Path:
    """The photograph, which moves by 4 pixels a frame, ten frames a second."""
    write_images(path, [np.roll(np.asarray(photograph), 4 * number, axis=1) for number in range(frames)], rate=10)
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_video(photos: Path, photograph: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(Path("clip.mp4"), photograph)
    assert main(["source=clip.mp4,photos/one.jpg", "save=images,json,txt,crops", "protocol=original", "out=o"]) == 0
    said = capsys.readouterr()
    assert "detecting faces in 1 image and 1 video" in said.out
    assert "1 image, 1 video (8 frames), 9 faces; " in said.out
    written = frames_of(Path("o/videos/clip.mp4"))
    assert len(written) == 8 and written[0].shape == (300, 256, 3)
    lines = lines_of("o/frames/clip.jsonl")
    assert [line["frame"] for line in lines] == list(range(8))
    assert [line["time_seconds"] for line in lines] == pytest.approx([n / 10 for n in range(8)])
    for number, line in enumerate(lines):
        (x1, y1, x2, y2), shift = line["boxes_xyxy"][0], 4 * number
        expected = (FACE_XYXY[0] + shift, FACE_XYXY[1], FACE_XYXY[2] + shift, FACE_XYXY[3])
        assert overlap([x1, y1, x2 - x1, y2 - y1], expected) > 0.65
    assert len(files_of("o/txt/clip")) == 8 and len(files_of("o/crops/clip")) == 8
    (video,) = read_json("o")["videos"]
    assert (video["frames"], video["faces"], video["broken"]) == (8, 8, None)
    assert (video["width"], video["height"], video["frames_per_second"]) == (256, 300, 10.0)
    assert video["files"] == ["frames/clip.jsonl", "videos/clip.mp4"]
    assert main(["source=clip.mp4,photos/one.jpg", "save=images,json,txt,crops", "protocol=original", "out=o"]) == 0
    assert "resuming: 2 of 2 inputs done already" in capsys.readouterr().out


def test_every_other_frame_redacted(photos: Path, photograph: Image.Image) -> None:
    write_video(Path("clip.mkv"), photograph, frames=9)
    words = ["source=clip.mkv", "redact=pixelate", "protocol=original", "out=o"]
    assert main([*words, "every=2"]) == 0
    assert [line["frame"] for line in lines_of("o/frames/clip.jsonl")] == [0, 2, 4, 6, 8]
    written = frames_of(Path("o/videos/clip.mkv"))
    assert len(written) == 5 and written[0].shape == (300, 256, 3)
    detector = FaceDetector.from_pretrained()
    assert all(detector.detect(frame, "original").count == 0 for frame in written)
    # From 0.3 s to 0.5 s alone: frames 4, and not 0, 2, 6.
    assert main([*words, "every=2", "redact_from=0.3", "redact_to=0.5", "save=images"]) == 0
    found = [len(detector.detect(frame, "original")) for frame in frames_of(Path("o/videos/clip.mkv"))]
    assert found == [1, 1, 0, 1, 1]
    assert main([*words, "max_frames=3"]) == 0
    assert len(frames_of(Path("o/videos/clip.mkv"))) == 3 == len(lines_of("o/frames/clip.jsonl"))


def test_a_video_that_breaks_off(photos: Path, photograph: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_video(Path("clip.mkv"), photograph, frames=16).read_bytes()
    Path("clip.mkv").write_bytes(whole[: len(whole) // 2])
    assert main(["source=clip.mkv", "out=o"]) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "clip.mkv: breaks off after" in line and "frames before are kept" in line
    assert "1 broke off" in said.out
    frames = lines_of("o/frames/clip.jsonl")
    assert 3 < len(frames) < 16 and len(frames_of(Path("o/videos/clip.mkv"))) == len(frames)
    assert read_json("o")["videos"][0]["broken"]
    Path("clip.mkv").write_bytes(whole)
    assert main(["source=clip.mkv", "out=o"]) == 0
    assert len(lines_of("o/frames/clip.jsonl")) == 16 and read_json("o")["videos"][0]["broken"] is None


def test_ctrl_c_in_a_video_keeps_its_beginning(
    photos: Path, photograph: Image.Image, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(Path("clip.mp4"), photograph, frames=12)
    none = Detections(torch.zeros(0, 4), torch.zeros(0))
    with monkeypatch.context() as patched:
        patched.setattr(StreamSettings, "boxes", Mock(side_effect=[[none]] * 5 + [KeyboardInterrupt]))
        assert main(["source=clip.mp4", "out=o"]) == 130
    assert "interrupted; what is done is kept" in capsys.readouterr().err
    assert len(frames_of(Path("o/videos/clip.mp4"))) == 5 == len(lines_of("o/frames/clip.jsonl"))
    content = read_json("o")
    assert content["complete"] is False and content["videos"][0]["interrupted"] is True
    assert main(["source=clip.mp4", "out=o"]) == 0
    assert len(lines_of("o/frames/clip.jsonl")) == 12


def test_passwords_are_not_written_down(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    word = "source=http://me:secret@127.0.0.1:9/a.jpg"
    monkeypatch.setattr(sys, "argv", ["detect", word])
    assert main([word, "source=photos/one.jpg", "out=o"]) == 1
    said = capsys.readouterr()
    assert "http://***@127.0.0.1:9/a.jpg cannot be fetched" in said.err
    written = "".join(path.read_text() for path in Path("o").iterdir() if path.is_file())
    assert "***@127.0.0.1" in written and "secret" not in written + said.out + said.err


def test_videos_that_cannot_be_read(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="videos need PyAV")
    Path("clip.mp4").write_bytes(b"no video at all" * 50)
    assert main(["source=clip.mp4,photos/one.jpg,987", "save=json", "out=o"]) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "clip.mp4" in errors[0] and "camera 987" in errors[1]
    assert "1 image, 1 face, 2 could not be read" in said.out


def test_a_bar_on_a_terminal() -> None:
    from rich.console import Console

    screen = io.StringIO()
    with Progress(4, "images", console=Console(file=screen, force_terminal=True, width=100)) as shown:
        shown.say("error: a line above the bar")
        for _ in range(4):
            shown.advance()
    assert "error: a line above the bar" in screen.getvalue()
    assert "4/4" in screen.getvalue() and "images/s" in screen.getvalue()
