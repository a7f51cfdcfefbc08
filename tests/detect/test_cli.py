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
from fanet_lightning.detect.outputs import Results, crop, encoded
from fanet_lightning.detect.run import Progress
from fanet_lightning.detect.stream import StreamSettings
from fanet_lightning.ops.boxes import pairwise_iou
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.wider_face.predictions import read_predictions
from tests.data.download_server import Answer, file_server
from tests.detect.helpers import portrait
from tests.detect.video_files import frames_of, lines_of, write_images

# The photograph's one face, in the image of 256 × 300 pixels that the tests use.
FACE_XYXY = (96, 61, 176, 165)
OPENED = functools.cache(detector_module.open_detector)


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small command's time is opening the model."""
    monkeypatch.setattr(detector_module, "open_detector", OPENED)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three images in ``photos``: of one face, of two, and in a sub-folder of none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    portrait().save(folder / "one.jpg", quality=95)
    Image.fromarray(np.hstack([np.asarray(portrait())] * 2)).save(folder / "two.png")
    Image.new("RGB", (120, 90), (30, 90, 200)).save(folder / "sub/none.jpg")
    monkeypatch.chdir(tmp_path)
    return folder


def read_json(out: str | Path) -> dict[str, Any]:
    return dict(json.loads((Path(out) / "detections.json").read_text()))


def by_name(content: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Image → its boxes, x y width height."""
    return {
        image["file_name"]: [x["bbox"] for x in content["annotations"] if x["image_id"] == image["id"]]
        for image in content["images"]
    }


def files_of(folder: str | Path) -> set[str]:
    folder = Path(folder)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def overlap(box_xywh: list[float], face_xyxy: tuple[int, ...]) -> float:
    x, y, w, h = box_xywh
    return float(pairwise_iou(torch.tensor([[x, y, x + w, y + h]]), torch.tensor([face_xyxy])))


def test_everything_that_can_be_saved(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "notes.txt").write_text("no image")
    assert main(["source=photos", "save=images,json,txt,crops"]) == 0
    out = Path("outputs/detect/photos")
    assert re.search(rf"\n3 images, 3 faces; [\d.]+ images/s; the results are in {out}\n", capsys.readouterr().out)
    content = read_json(out)
    assert content["complete"] is True and content["failed"] == []
    boxes = by_name(content)
    found = {x["file_name"]: (x["width"], x["height"], len(boxes[x["file_name"]])) for x in content["images"]}
    assert found == {"one.jpg": (256, 300, 1), "sub/none.jpg": (120, 90, 0), "two.png": (512, 300, 2)}
    assert overlap(boxes["one.jpg"][0], FACE_XYXY) > 0.7
    # The very numbers of the Python API.
    alone = FaceDetector.from_pretrained(precision=content["settings"]["precision"])
    expected = alone.detect(photos / "one.jpg", threshold=0.5)
    (x1, y1, x2, y2) = expected.boxes_xyxy[0].double().tolist()
    (annotation,) = (a for a in content["annotations"] if a["image_id"] == 1)
    assert annotation["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-9)
    assert annotation["score"] == pytest.approx(float(expected.scores[0]), abs=1e-9)
    assert annotation["area"] == pytest.approx((x2 - x1) * (y2 - y1)) and annotation["iscrowd"] == 0
    assert content["made_by"]["checkpoint"] == "fanet_light" and content["settings"]["threshold"] == 0.5
    # The scorer reads the texts.
    packed = read_predictions(out / "txt", ["one", "two"], known_ids=["one", "two", "sub/none"])
    assert packed.starts.tolist() == [0, 1, 3]
    assert packed.boxes_xywh[0] == pytest.approx(boxes["one.jpg"][0], abs=0.006)
    assert (out / "txt/sub/none.txt").read_text() == "none\n0\n"
    with Image.open(out / f"crops/one_0_{annotation['score']:.2f}.jpg") as cropped:
        assert abs(cropped.width - (x2 - x1)) < 2 and abs(cropped.height - (y2 - y1)) < 2
    assert len(list((out / "crops").iterdir())) == 3
    # Size and format stay.
    with Image.open(out / "images/two.png") as drawn, Image.open(out / "images/sub/none.jpg") as other:
        assert (drawn.format, drawn.size, other.format) == ("PNG", (512, 300), "JPEG")
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


def test_redacted_faces_regions_and_what_is_left(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["source=photos/two.png", "save=images,crops", "redact_regions=[[0,0,40,20]]"]
    assert main([*words, "redact=solid", "redact_scale=2", "out=a"]) == 0
    hidden, original = read_image_rgb("a/images/two.png"), read_image_rgb(photos / "two.png")
    assert (hidden[:20, :40] == 0).all() and (hidden[45:180, 75:195] == 0).all()
    assert ((hidden == original) | (hidden == 0)).all(), "neither boxes nor a bar unless asked"
    assert (hidden[20:30, 230:290] == original[20:30, 230:290]).all()
    assert all(read_image_rgb(path).max() < 10 for path in Path("a/crops").iterdir())
    assert main([*words, "redact=blur", "draw=true", "out=c"]) == 0
    blurred = read_image_rgb("c/images/two.png")
    assert (blurred != original).any() and not ((blurred == original) | (blurred == 0)).all()
    Image.new("RGB", (5, 5), (0, 255, 0)).save("cover.png")
    words += ["redact=image:cover.png", "redact_shape=ellipse", "out=b"]
    assert main(words) == 0
    covered = read_image_rgb("b/images/two.png")
    assert (covered[110, 136] == (0, 255, 0)).all() and (covered[52, 88] == original[52, 88]).all()
    capsys.readouterr()
    # Faces that are left are counted; another cover is another result.
    Image.new("RGB", (5, 5), (0, 0, 255)).save("cover.png")
    assert main([*words, "threshold=1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"starting over: .*\(threshold, redact\)", said)
    assert int(re.findall(r"0\.15 or more that were left: (\d+);", said)[0]) >= 2
    assert (read_image_rgb("b/images/two.png")[:20, :40] == (0, 0, 255)).all()


def test_which_faces_count(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["source=photos", "protocol=original", "save=images,json", "out=o"]

    def faces(*more: str) -> dict[str, int]:
        assert main([*words, *more]) == 0
        return {name: len(boxes) for name, boxes in by_name(read_json("o")).items()}

    portrait().transpose(Image.Transpose.ROTATE_90).save(photos / "turned.jpg", quality=95)
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


def test_bad_files_are_named_and_the_others_done(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanet_lightning.data.images.heic_plug_in", lambda: False)
    whole = (photos / "one.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    with zipfile.ZipFile(photos / "packed.jpg", "w") as archive:
        archive.writestr("a", "b")
    (photos / "phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    portrait().save(photos / "moving.gif", save_all=True, append_images=[Image.new("RGB", (256, 300), color)
                    for color in ("red", "blue")])  # fmt: skip
    assert main(["source=photos", "out=o"]) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    reasons = {"cut.jpg": "cut short", "empty.png": "is empty", "packed.jpg": "not an image file",
               "phone.heic": "pip install pillow-heif"}  # fmt: skip
    for line, (name, reason) in zip(errors, reasons.items(), strict=True):
        assert line.split("photos/")[1].startswith(f"{name} ") and reason in line
    assert "5 images, 4 faces, 4 could not be read; " in said.out and "Traceback" not in said.err
    content = read_json("o")
    assert [entry["file_name"] for entry in content["failed"]] == [*reasons] and content["complete"] is True
    assert files_of("o/images") == {"one.jpg", "two.png", "sub/none.jpg", "dot.png", "moving.png"}
    # Nothing but bad ones is a failure as well; videos and cameras too.
    assert main(["source=photos/cut.jpg", "out=p"]) == 1
    assert "0 images, 0 faces, 1 could not be read; the results are in p\n" in capsys.readouterr().out
    pytest.importorskip("av", reason="videos need PyAV")
    Path("clip.mp4").write_bytes(b"no video at all" * 50)
    assert main(["source=clip.mp4,photos/one.jpg,987", "save=json", "out=q"]) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "clip.mp4" in errors[0] and "camera 987" in errors[1]
    assert "1 image, 1 face, 2 could not be read" in said.out


def test_what_is_done_is_skipped(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["source=photos", "save=images,json,crops", "out=o"]
    assert main(words) == 0
    first, drawn = read_json("o"), (Path("o/images/one.jpg"), Path("o/images/two.png"))
    for path in drawn:
        path.write_bytes(b"left alone")
    capsys.readouterr()
    assert main(words) == 0 and "resuming: 3 of 3 inputs done already" in capsys.readouterr().out
    assert [path.read_bytes() for path in drawn] == [b"left alone"] * 2
    assert read_json("o") | {"made_by": 0} == first | {"made_by": 0}
    # One that is new, one that has changed, one whose results are gone.
    (photos / "new.jpg").write_bytes((photos / "one.jpg").read_bytes())
    Image.new("RGB", (100, 50)).save(photos / "two.png")
    Path("o/images/sub/none.jpg").unlink()
    assert main(words) == 0 and "resuming: 1 of 4 inputs done already" in capsys.readouterr().out
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
    for name in ("three.png", "two.webp", "other/one.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(name)
    words = ["save=images,json,txt", "out=o"]
    assert main(["source=photos", *words]) == main(["source=three.png", *words]) == 0
    assert by_name(read_json("o")).keys() == {"three.png", "one.jpg", "two.png", "sub/none.jpg"}
    before = {name: Path("o", name).read_bytes() for name in files_of("o") if "/" in name}
    for source, name in (("other/one.jpg", "one.jpg"), ("two.webp", "two.png")):  # txt/two.txt
        with pytest.raises(InputError, match=f"^out=o: the results of {source} would overwrite .*{name}; give another"):
            main([f"source={source}", *words])
    assert before == {name: Path("o", name).read_bytes() for name in files_of("o") if "/" in name}
    # What turned bad has lost its results, and does not come back with the next run.
    Path("three.png").write_bytes(b"bad")
    assert main(["source=three.png", *words]) == 1 and main(["source=photos", *words]) == 0
    assert by_name(read_json("o")).keys() == {"one.jpg", "two.png", "sub/none.jpg"}


def test_no_result_takes_the_place_of_another_or_of_an_original(photos: Path) -> None:
    names = ("d.jpg", "d.jpg.jpg", "e.jpg", "e_2.jpg", "e")
    for name in names:
        Image.new("RGB", (64, 64)).save(name, "JPEG")
    assert main([f"source={','.join(names)}", "out=o", "save=images"]) == 0
    assert len(list(Path("o/images").iterdir())) == 5
    (photos / "sub").rename(photos / "images")  # a person's own
    for source, message in (("photos", "contains inputs"), ("d.jpg", "images is there and not of")):
        with pytest.raises(InputError, match=message):
            main([f"source={source}", "out=photos", "redact=blur"])
    with pytest.raises(InputError, match="too large"):
        encoded(np.zeros((1, 70_000, 3), np.uint8), ".jpg")


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


def test_colors_are_shown_as_before(photos: Path) -> None:
    """RGB keeps its profile in whatever is written; gray becomes sRGB by its own."""
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("jpg", "png", "webp", "tiff"):
        portrait().save(f"in.{suffix}", icc_profile=own, quality=95)
    grays = {"gray.jpg": (gray_profile(), None, 188), "gray_alpha.png": (gray_profile(), None, 188),
             "gray_of_rgb.jpg": (own, own, 128), "gray_damaged.png": (gray_profile()[:150], None, 128)}  # fmt: skip
    for name, (profile, _, _) in grays.items():
        mode, value = ("LA", (128, 255)) if "alpha" in name else ("L", 128)
        Image.new(mode, (60, 50), value).save(name, icc_profile=profile, quality=100)
    assert main(["source=*.*", "save=images,crops", "protocol=original", "out=o", "redact=pixelate"]) == 0
    written, crops = [*Path("o/images").glob("in.*")], [*Path("o/crops").glob("*.jpg")]
    assert len(written) == len(crops) == 4
    assert all(Image.open(path).info.get("icc_profile") == own for path in [*written, *crops])
    np.testing.assert_array_equal(read_image_rgb("o/images/in.png")[:40], np.asarray(portrait())[:40])
    for name, (_, profile, value) in grays.items():
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


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(photos: Path) -> None:
    for number in range(30):
        portrait().resize((512, 600)).save(photos / f"n{number:02}.jpg")
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nimport runpy, sys\n"
    program += "runpy.run_module('fanet_lightning.detect', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", program, "source=photos", "save=images,json", "out=o"]
    journal = Path("o/done.jsonl")

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.is_file() else 0

    for kind in (signal.SIGKILL, signal.SIGINT):
        before, end = lines(), time.monotonic() + 300
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while lines() <= before + 2:
            assert time.monotonic() < end
            time.sleep(0.01)
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
    assert len([read_image_rgb(f"o/images/{name}") for name in files_of("o/images")]) == done
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0 and f"resuming: {done} of 33 inputs done already" in finished.stdout
    assert len(read_json("o")["images"]) == 33 and read_json("o")["complete"] is True
    assert not Path("o/.unfinished").exists()


def test_an_image_over_http_and_lists(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    # Passwords are not written down.
    word = "source=http://me:secret@127.0.0.1:9/a.jpg"
    monkeypatch.setattr(sys, "argv", ["detect", word])
    assert main([word, "source=photos/one.jpg", "out=q"]) == 1
    said = capsys.readouterr()
    assert "http://***@127.0.0.1:9/a.jpg cannot be fetched" in said.err
    written = "".join(path.read_text() for path in Path("q").iterdir() if path.is_file())
    assert "***@127.0.0.1" in written and "secret" not in written + said.out + said.err


MISTAKES = {
    "": "a source must be given", "source=nowhere": "source=nowhere", "source=http://[::1/a.jpg": "[::1/a.jpg",
    "source=photos save=pictures": "save=pictures",
    "source=photos threshold={64:0.3}": "threshold={64: 0.3}", "source=photos draw=3": "draw=3",
    "source=photos redact=image:no.png": "redact=image:no.png: no.png cannot be read",
    "source=photos redact=blur redact_from=5 redact_to=2": "redact_from=5 redact_to=2",
    "source=photos redact_regions=[[1,2,3,4]]": "redact_from and redact_to need redact=",
    "source=photos redact_scale=1.5": "need redact=", "source=photos resume=perhaps": "resume=perhaps",
    "source=photos every=0": "every=0", "source=photos max_frames=0": "max_frames=0",
    "source=photos max_download_mb=-1": "max_download_mb", "source=photos/one.jpg out=photos/one.jpg": "another out",
    "source=photos checkpoint=nothing.ckpt": "nothing.ckpt",
}  # fmt: skip


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
    mistaken = subprocess.run(
        [sys.executable, "-m", "fanet_lightning.detect", "source=photos/*.gif"], capture_output=True, text=True
    )
    assert mistaken.returncode == 2 and mistaken.stdout == ""
    assert re.fullmatch(r"error: source=photos/\*\.gif: no file matches; give.*\n", mistaken.stderr)


def test_inputs_are_never_overwritten(photos: Path) -> None:
    photos.rename("images")
    before = {name: Path("images", name).read_bytes() for name in files_of("images")}
    for source in ("images", "images/sub/none.jpg"):
        with pytest.raises(InputError, match=r"results are written into .*images, which contains inputs; give another"):
            main([f"source={source}", "out=."])
    assert before == {name: Path("images", name).read_bytes() for name in files_of("images")}
    Path("of_others").mkdir()
    Path("of_others/done.jsonl").write_text('{"task": "other"}\n{"id": 1}\n')
    with pytest.raises(InputError, match=r"done\.jsonl is there and not of a run of detect"):
        main(["source=images", "out=of_others"])


def test_an_out_that_is_full_or_in_use(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(Path("o")), pytest.raises(InputError, match="o is in use by a run of detect"):
        main(["source=photos", "out=o"])
    monkeypatch.setattr(running, "write_image", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        main(["source=photos", "save=images", "out=o"])


def test_an_image_that_the_network_refuses_is_one_of_many(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def boxes(_settings: Any, _network: Any, images: list[Any]) -> list[Detections]:
        if images[0].width == 256:
            raise InputError("an image of 300 × 256 pixels does not fit into memory")
        return [Detections(torch.zeros(0, 4), torch.zeros(0))]

    monkeypatch.setattr(StreamSettings, "boxes", boxes)
    assert main(["photos", "save=json", "out=o"]) == 1
    content = read_json("o")
    assert [image["file_name"] for image in content["images"]] == ["sub/none.jpg", "two.png"]
    assert content["failed"] == [
        {"file_name": "one.jpg", "reason": "an image of 300 × 256 pixels does not fit into memory"}
    ]


def test_crops_have_at_least_a_pixel_and_stay_inside() -> None:
    image = np.arange(20 * 30 * 3, dtype=np.int64).reshape(20, 30, 3).astype(np.uint8)
    for box, rows, columns in (
        ((2.2, 3.7, 5.1, 8.0), (3, 8), (2, 6)), ((-3.0, -1.0, 4.0, 2.0), (0, 2), (0, 4)),
        ((25.0, 15.0, 40.0, 40.0), (15, 20), (25, 30)), ((7.0, 7.0, 7.0, 7.0), (7, 8), (7, 8)),
        ((30.0, 20.0, 30.0, 20.0), (19, 20), (29, 30)),
    ):  # fmt: skip
        assert (crop(image, np.array(box)) == image[slice(*rows), slice(*columns)]).all(), box


# Videos


def write_video(path: Path, frames: int = 8) -> Path:
    """The photograph, which moves by 4 pixels a frame, ten frames a second."""
    write_images(path, [np.roll(np.asarray(portrait()), 4 * number, axis=1) for number in range(frames)], rate=10)
    return path


def test_a_video(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(Path("clip.mp4"))
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


def test_every_other_frame_redacted(photos: Path) -> None:
    write_video(Path("clip.mkv"), frames=9)
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


def test_a_video_that_breaks_off(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_video(Path("clip.mkv"), frames=16).read_bytes()
    Path("clip.mkv").write_bytes(whole[: len(whole) // 2])
    assert main(["source=clip.mkv", "out=o"]) == 1
    said = capsys.readouterr()
    assert re.search(r"^error: .*clip\.mkv: breaks off after .* frames before are kept", said.err, re.MULTILINE)
    assert said.err.count("error: ") == 1 and "1 broke off" in said.out
    frames = lines_of("o/frames/clip.jsonl")
    assert 3 < len(frames) < 16 and len(frames_of(Path("o/videos/clip.mkv"))) == len(frames)
    assert read_json("o")["videos"][0]["broken"]
    Path("clip.mkv").write_bytes(whole)
    assert main(["source=clip.mkv", "out=o"]) == 0
    assert len(lines_of("o/frames/clip.jsonl")) == 16 and read_json("o")["videos"][0]["broken"] is None


def test_a_bar_on_a_terminal() -> None:
    from rich.console import Console

    screen = io.StringIO()
    with Progress(4, "images", console=Console(file=screen, force_terminal=True, width=100)) as shown:
        shown.console.print("error: a line above the bar")
        for _ in range(4):
            shown.step()
    assert "error: a line above the bar" in screen.getvalue()
    assert "4/4" in screen.getvalue() and "images/s" in screen.getvalue()
