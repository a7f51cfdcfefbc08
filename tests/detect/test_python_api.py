"""``FaceDetector`` as a program uses it: what may be handed over, what comes back, many images at a time."""

import json
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from fanet_lightning import FaceDetector
from fanet_lightning.cli.config import compose_config
from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.data.transforms import TestScale
from fanet_lightning.detect import stream as image_stream
from fanet_lightning.detect.protocols import protocol_names, protocol_of
from fanet_lightning.detect.stream import image_rgb_of
from fanet_lightning.detect.tiling import map_shapes
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL, DEFAULT_THRESHOLD
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import encode
from fanet_lightning.ops.draw import annotate
from fanet_lightning.ops.structures import Detections, HeadOutput, NetworkOutput
from fanet_lightning.score.wider_face.predictions import read_predictions, write_predictions
from tests.data.wider_files import turned
from tests.detect.helpers import detector_of, light

Pixels = npt.NDArray[np.uint8]


class ByColor(nn.Module):
    """One face an image, and the image's color says where: (red, green, red + 10, green + 20), score by blue.

    So a wrong channel order, a wrong place in a batch or a wrong scale shows. Keeps the shapes of what it was given.
    """

    def __init__(self, most_pixels: int = 10**9) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []
        self.most_pixels = most_pixels

    def forward(self, images: torch.Tensor, upsample: Any = None) -> NetworkOutput:
        count, _, height, width = images.shape
        self.shapes.append((count, height, width))
        if count * height * width > self.most_pixels:
            raise MemoryError
        shapes = map_shapes(height, width)
        anchors = AnchorGrid(shapes).boxes_cxcywh()
        logits = torch.tensor([20.0, 0.0]).repeat(count, len(anchors), 1)
        offsets = torch.zeros(count, len(anchors), 4)
        for index, (red, green, blue) in enumerate(images[:, :, 0, 0].float().tolist()):
            logits[index, 0] = torch.tensor([0.0, logit(blue)])
            offsets[index, 0] = encode(torch.tensor([[red, green, red + 10, green + 20]]), anchors[:1])[0]
        return NetworkOutput([HeadOutput(logits, offsets)], list(shapes))


def logit(blue: float) -> float:
    return blue / 32 - 4


def color(red: int, green: int, blue: int, height: int = 60, width: int = 80) -> Pixels:
    return np.full((height, width, 3), (red, green, blue), np.uint8)


def check(found: Any, red: int, green: int, blue: int, scale: float = 1.0) -> None:
    """The face that :class:`ByColor` sees, in pixels of an image that was enlarged by ``scale``."""
    assert isinstance(found, Detections)
    expected = torch.tensor([[red, green, red + 10, green + 20]]) / scale
    torch.testing.assert_close(found.boxes_xyxy, expected, atol=1e-3, rtol=0)
    assert found.scores.tolist() == [pytest.approx(1 / (1 + math.exp(-logit(blue))), abs=1e-6)]


@pytest.fixture
def detector() -> FaceDetector:
    return detector_of(ByColor())


# What stands for an image


def test_every_kind_of_image_gives_the_same_faces(detector: FaceDetector, tmp_path: Path) -> None:
    image = color(5, 12, 200)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    chw = torch.from_numpy(image).permute(2, 0, 1)
    read_only = image.copy()
    read_only.flags.writeable = False
    kinds: list[Any] = [
        str(path), path, Image.open(path), Image.fromarray(image), image, np.asfortranarray(image), read_only,
        image[::-1, ::-1], image[..., ::-1].copy()[..., ::-1], chw, chw.contiguous(),
        np.broadcast_to(image[0, 0], image.shape),
    ]  # fmt: skip
    # One by one, and together with the kinds mixed: a list in, a list out.
    several = detector.detect(kinds, "original")
    assert isinstance(several, list) and len(several) == len(kinds)
    for found in [*several, *(detector.detect(kind, "original") for kind in kinds)]:
        check(found, 5, 12, 200)
    assert detector.detect([]) == [] and detector.detect(iter([image]))[0].count == 1
    # Batches: arrays and tensors of four dimensions.
    images = np.stack([color(1, 2, 100), color(3, 4, 150)])
    for batch in (images, torch.from_numpy(images).permute(0, 3, 1, 2)):
        first, second = detector.detect(batch, "original", 0.0)
        check(first, 1, 2, 100)
        check(second, 3, 4, 150)
    for item in detector.detect(torch.full((2, 1, 60, 80), 7, dtype=torch.uint8), "original", 0.0):
        check(item, 7, 7, 7)


def test_the_channel_order_of_arrays_and_tensors_is_told(detector: FaceDetector, tmp_path: Path) -> None:
    bgr = color(40, 12, 5)
    alpha = np.dstack([bgr, np.full(bgr.shape[:2], 255, np.uint8)])
    for image in (bgr, alpha, torch.from_numpy(bgr).permute(2, 0, 1), bgr[:50, ::2]):
        check(detector.detect(image, "original", 0.0, channel_order="bgr"), 5, 12, 40)
    check(detector.detect([bgr], "original", 0.0, channel_order="bgr")[0], 5, 12, 40)
    # A file knows its own.
    Image.fromarray(bgr).save(tmp_path / "a.png")
    check(detector.detect(tmp_path / "a.png", "original", 0.0, channel_order="bgr"), 40, 12, 5)
    with pytest.raises(InputError, match=r"channel_order=gbr.*bgr"):
        detector.detect(bgr, channel_order="gbr")  # type: ignore[call-overload]


def test_grey_and_transparent_arrays_are_as_their_files() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert (image_rgb_of(image) == grey[..., None]).all() and image_rgb_of(image).shape == (3, 4, 3)
    # Half of 100 over white: 255 + (100 - 255) × 128 / 255 = 177.2; nothing of it; all of it.
    over = np.array([[[100, 0, 200, 128], [100, 0, 200, 0], [100, 0, 200, 255]]], np.uint8)
    expected = [[[177, 127, 227], [255, 255, 255], [100, 0, 200]]]
    for other in (over, torch.from_numpy(over).permute(2, 0, 1)):
        np.testing.assert_allclose(image_rgb_of(other), expected, atol=1)
    np.testing.assert_array_equal(image_rgb_of(over[..., [2, 1, 0, 3]], "bgr"), image_rgb_of(over))


def test_pillow_images_are_as_their_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), dtype=np.uint16)
    path = tmp_path / "a.tiff"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        image = Image.fromarray(random[..., 0].copy()) if mode == "I;16" else Image.fromarray(random.astype(np.uint8))
        image = image if mode == "I;16" else image.convert(mode)
        image.save(path)
        with Image.open(path) as opened:
            assert opened.mode == image.mode == mode
            for given in (image, opened):
                np.testing.assert_array_equal(image_rgb_of(given), read_image_rgb(path), err_msg=mode)
    for orientation in range(1, 9):
        Image.fromarray(random.astype(np.uint8)[:2, :3, :3]).save(tmp_path / "a.png", exif=turned(orientation))
        upright = image_rgb_of(Image.open(tmp_path / "a.png"))
        assert upright.shape == ((3, 2, 3) if orientation >= 5 else (2, 3, 3))
        np.testing.assert_array_equal(upright, read_image_rgb(tmp_path / "a.png"))


@pytest.mark.parametrize(("image", "message"), [
    (np.array(7, np.uint8), r"an array \(\) uint8; give"),
    (np.zeros((8, 8, 3)), r"\(8, 8, 3\) float64; give .*array \(H, W, 3\)"),
    (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) uint8"), (np.zeros((8, 0), np.uint8), r"\(8, 0\)"),
    (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor \(8, 8, 3\) torch.uint8"),
    (torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), r"\(1, 1, 3, 8, 8\)"), (Image.new("RGB", (0, 8)), r"no pixels"),
    (Image.new("F", (8, 8)), r"PIL image.*F-type"), (b"\xff\xd8", "type bytes"), ([7], "type int"),
    ("nowhere.jpg", "nowhere.jpg.*No such file"),
], ids=lambda value: value[:24] if isinstance(value, str) else type(value).__name__)  # fmt: skip
def test_what_is_no_image_is_one_line(image: Any, message: str, detector: FaceDetector) -> None:
    with pytest.raises(InputError, match=message) as raised:
        detector.detect(image)
    assert "\n" not in str(raised.value) and detector.backend.network.shapes == []


# Protocol and threshold


def test_a_protocol_is_a_name_or_settings(detector: FaceDetector) -> None:
    image = color(8, 16, 200)  # 60 high: shorter side 120 doubles it
    for protocol in (TestScale("short", 120), {"name": "mine", "kind": "short", "size": 120}):
        check(detector.detect(image, protocol), 8, 16, 200, scale=2)
        check(detector.detect([image], protocol=protocol)[0], 8, 16, 200, scale=2)
    check(detector.detect(image, "vga640"), 8, 16, 200, scale=8)
    assert detector.backend.network.shapes[-1] == (1, 480, 640)
    assert protocol_of(None) == protocol_of(DEFAULT_PROTOCOL) and len({protocol_of(x) for x in protocol_names()}) > 5
    # Clipped to the image.
    corner = detector.detect(color(75, 50, 200), "original")
    torch.testing.assert_close(corner.boxes_xyxy, torch.tensor([[75.0, 50, 80, 60]]), atol=1e-3, rtol=0)
    mistakes = {"../config": r"protocol=\.\./config.*multiscale", 640: "protocol=640"}
    for wrong, message in [*mistakes.items(), ({"kind": "short", "sise": 3}, "protocol.sise"),
                           ({"kind": "wide"}, "protocol.kind=wide")]:  # fmt: skip
        for call in (detector.detect, detector.detect_each):
            with pytest.raises(InputError, match=message):
                call([image], wrong)  # type: ignore[operator]


def test_the_defaults_are_those_of_the_command_line_and_the_page(detector: FaceDetector) -> None:
    """Two sizes and scores of 0.5, whichever way somebody comes to faces; 0.0 gives all."""
    images = [color(1, 1, blue) for blue in (96, 128, 160)]  # logits -1, 0, 1
    for found in (detector.detect(images), [outcome for _, outcome in detector.detect_each(images)]):
        assert [item.count for item in found if isinstance(item, Detections)] == [0, 1, 1]
    # 60 × 80 pixels: enlarged fourfold, then 0.6 of that.
    assert [tuple(x) for x in detector.backend.network.shapes[-2:]] == [(1, 240, 320), (1, 144, 192)]
    for threshold, counts in ((0.0, [1, 1, 1]), (np.float64(0.51), [0, 0, 1])):
        assert [item.count for item in detector.detect(images, threshold=threshold)] == counts
    stated = [(own.protocol.name, own.threshold) for own in (compose_config(verb, []) for verb in ("detect", "app"))]
    assert stated == [(DEFAULT_PROTOCOL, DEFAULT_THRESHOLD)] * 2 == [("auto", 0.5)] * 2


# Many images


SIZES = [(60, 80), (80, 60), (64, 64), (30, 40)]
BLUE = st.integers(0, 255)


@settings(max_examples=60)
@given(
    images=st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, 20), st.integers(0, 20), BLUE), max_size=24),
    batch_size=st.integers(1, 5),
    most_pixels=st.sampled_from([6400, 11_000, 10**9]),
    protocol=st.sampled_from(["original", TestScale("short", 60), TestScale("long", 80, tile_pixels=None)]),
)  # fmt: skip
def test_a_list_gives_what_its_images_give_one_by_one(
    images: list[Any], batch_size: int, most_pixels: int, protocol: TestScale | str
) -> None:
    """Exactly: this network computes an image alike in any company. So too where memory forbids some batches."""
    arrays = [color(red, green, blue, *size) for size, red, green, blue in images]
    alone, network = detector_of(ByColor()), ByColor(most_pixels)
    found = detector_of(network, batch_size=batch_size).detect(arrays, protocol, 0.0)
    assert len(found) == len(arrays)
    for image, item in zip(arrays, found, strict=True):
        expected = alone.detect(image, protocol, 0.0)
        assert torch.equal(item.boxes_xyxy, expected.boxes_xyxy) and torch.equal(item.scores, expected.scores)
    assert max([count for count, _, _ in network.shapes], default=0) <= batch_size


def test_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU small ones only: 640 × 480 pixels in all. 240 × 320 times 4, 60 × 80 times 8, though 64 would do.
    network = ByColor()
    sizes = [(480, 640)] * 2 + [(240, 320)] * 5 + [(60, 80)] * 9 + [(80, 60)]
    assert len(detector_of(network).detect([color(1, 1, 200, *size) for size in sizes], "original")) == 17
    counts = [count for count, height, _ in network.shapes if height != 256]  # the probe of what a pixel costs
    assert counts == [1, 1, 4, 1, 8, 1, 1]
    with pytest.raises(InputError, match="batch_size=0"):
        detector_of(ByColor(), batch_size=0)
    # Where memory is known, half of 2,000,000 bytes hold 10,000 pixels at 100 bytes each. Where it is not, 4 × 4,800
    # are tried once.
    for module in ("data.transforms", "detect.detector", "detect.tiling"):
        monkeypatch.setattr(f"fanet_lightning.{module}.SMALLEST_TILE_PIXELS", 1)
    monkeypatch.setattr("fanet_lightning.detect.tiling.bytes_per_pixel", lambda *_, **__: 100.0)
    for available, expected in ((2_000_000, [2, 2, 2, 2]), (None, [4, 2, 2, 2, 2])):
        monkeypatch.setattr("fanet_lightning.detect.tiling.available_bytes", lambda _, known=available: known)
        network = ByColor(most_pixels=10_000)
        found = detector_of(network, batch_size=4).detect([color(k, 2, 200) for k in range(8)], "original")
        for index, item in enumerate(found):
            check(item, index, 2, 200)
        assert [count for count, _, _ in network.shapes] == expected


def test_a_bad_image_ends_a_list_but_not_an_iteration(detector: FaceDetector, tmp_path: Path) -> None:
    Image.fromarray(color(1, 2, 200)).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_text("no image")
    inputs = [tmp_path / "good.png", tmp_path / "bad.jpg", np.zeros((0, 3, 3), np.uint8), color(3, 4, 200)]
    with pytest.raises(UnreadableImage, match=r"bad.jpg"):
        detector.detect(inputs)
    for batch_size in (1, 3):
        detector.batch_size = batch_size
        outcomes = list(detector.detect_each(iter(inputs), "original"))
        assert [image is given for (image, _), given in zip(outcomes, inputs, strict=True)] == [True] * 4
        found = [outcome for _, outcome in outcomes]
        check(found[0], 1, 2, 200)
        check(found[3], 3, 4, 200)
        assert isinstance(found[1], UnreadableImage) and "bad.jpg" in str(found[1])
        assert isinstance(found[2], InputError) and "(0, 3, 3)" in str(found[2])
    [(given, one)] = detector.detect_each(str(tmp_path / "good.png"))
    assert given == str(tmp_path / "good.png") and isinstance(one, Detections)
    # One that memory does not hold.
    small, whole = detector_of(ByColor(most_pixels=5000)), TestScale("original", tile_pixels=None)
    (_, fits), (_, error) = small.detect_each([color(1, 1, 200), color(1, 1, 200, 90, 90)], whole)
    assert isinstance(fits, Detections) and "90 × 90 pixels at test scale does not fit" in str(error)


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-images")]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_more_is_read_ahead_than_it_says(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def endless() -> Iterator[Pixels]:
        nonlocal taken
        while True:
            taken += 1
            yield color(1, 1, 200)

    detector = detector_of(ByColor(), batch_size=batch_size)
    found = detector.detect_each(endless(), "original")
    next(found)
    most = 2 * image_stream.READERS + batch_size
    assert 2 <= taken <= most
    for _ in range(20):
        next(found)
    assert taken <= most + 20 and reading_threads()
    found.close()  # type: ignore[attr-defined]
    assert not reading_threads()
    # Large images: one that waits is enough, next to those that are being read.
    monkeypatch.setattr(image_stream, "READ_AHEAD_BYTES", 1)
    taken = 0
    next(detector.detect_each(endless(), "original"))
    assert taken <= 2 + image_stream.READERS


def test_an_error_of_the_images_themselves_comes_through(detector: FaceDetector) -> None:
    def broken() -> Iterator[Pixels]:
        yield color(1, 2, 200)
        raise RuntimeError("the camera fell down")

    with pytest.raises(RuntimeError, match="the camera fell down"):
        detector.detect(broken())
    assert not reading_threads()


def test_images_of_extreme_sizes(tmp_path: Path) -> None:
    for size in ((1, 1), (1, 300), (300, 1)):
        boxes = light().detect(np.zeros(size, np.uint8)[::-1, ::-1], threshold=0.0).boxes_xyxy
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= size[1]).all() and (boxes[:, 1::2] <= size[0]).all()
    path, network = tmp_path / "large.png", ByColor()
    Image.new("L", (10_000, 10_000), 99).save(path, compress_level=1)
    check(detector_of(network).detect([path], "vga640", 0.0)[0], 99, 99, 99, scale=0.064)
    assert network.shapes[-1] == (1, 640, 640)


# What comes back

FACES = Detections(torch.tensor([[1.5, 2.25, 11.5, 22.25], [0.1, 0.2, 5.3, 9.4]]), torch.tensor([0.9, 0.3]))


def test_detections_are_a_sequence_of_faces() -> None:
    none, one = FACES.above(0.91), FACES.above(0.9)
    assert [len(found) for found in (FACES, one, none)] == [FACES.count, one.count, none.count] == [2, 1, 0]
    assert FACES and not none and none.boxes_xyxy.shape == (0, 4) and list(none) == []
    assert torch.equal(one.boxes_xyxy, FACES.boxes_xyxy[:1])
    for index in (0, 1, -1, np.int64(1), FACES.scores.argmax()):
        assert FACES[index] == list(FACES)[int(index)]
        assert FACES[index].box_xyxy == tuple(FACES.boxes_xyxy[index].tolist()) and FACES[0].score > FACES[1].score
    with pytest.raises(IndexError):
        FACES[2]
    for chosen in (slice(1, None), [1], torch.tensor([False, True]), np.array([False, True]), FACES.scores < 0.5):
        part = FACES[chosen]
        assert isinstance(part, Detections) and list(part) == [FACES[1]]
    assert "2 faces" in repr(FACES) and "1 face," in repr(one) and "0 faces" in repr(none)
    assert [(x.dtype, x.shape) for x in FACES.numpy()] == [(np.float32, (2, 4)), (np.float32, (2,))]
    assert pickle.loads(pickle.dumps(FACES)).count == 2


def test_detections_are_drawn_upright_and_saved(tmp_path: Path) -> None:
    pixels = np.full((40, 30, 3), 90, np.uint8)
    drawn = FACES.draw(pixels)
    np.testing.assert_array_equal(drawn, annotate(pixels, *FACES.numpy()))
    lying = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "turned.png", exif=turned(6))  # turn clockwise to see it
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(FACES.draw(image), drawn)
    clear = Image.new("RGBA", (30, 40))  # transparent: white, as detection reads it
    np.testing.assert_array_equal(FACES.draw(clear), FACES.draw(np.full((40, 30, 3), 255, np.uint8)))
    FACES.save(tmp_path / "drawn.png", pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), drawn)


def test_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FACES.to_coco(42)
    assert first == {"image_id": 42, "category_id": 1, "bbox": [1.5, 2.25, 10.0, 20.0], "score": pytest.approx(0.9)}
    assert second["bbox"] == pytest.approx([0.1, 0.2, 5.2, 9.2]) and FACES.above(1).to_coco(1) == []
    assert json.loads(json.dumps(FACES.to_coco("a", category_id=7)))[1]["category_id"] == 7
    text = FACES.to_wider("0_Parade_1")
    assert text == "0_Parade_1\n2\n1.50 2.25 10.00 20.00 0.900000\n0.10 0.20 5.20 9.20 0.300000\n"
    assert FACES.above(1).to_wider("x") == "x\n0\n"
    # What the package itself writes, and reads back.
    write_predictions(tmp_path / "out", {"0--Parade/0_Parade_1": FACES.numpy()})
    assert (tmp_path / "out/0--Parade/0_Parade_1.txt").read_text() == text
    assert read_predictions(tmp_path / "out", ["0--Parade/0_Parade_1"]).scores.tolist() == [0.9, 0.3]
    supervision = pytest.importorskip("supervision", reason="the extra supervision is not installed")
    found = FACES.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2 and len(FACES.above(1).to_supervision()) == 0
    np.testing.assert_array_equal(found.xyxy, FACES.numpy()[0])
    assert found.class_id.tolist() == [0, 0] and found.confidence.tolist() == pytest.approx([0.9, 0.3])
    found.xyxy[:] = 0  # its own copy
    assert FACES.boxes_xyxy[0, 0] == 1.5
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"fanet-lightning\[supervision\]"):
        FACES.to_supervision()


# Loading


def test_importing_is_light(tmp_path: Path) -> None:
    """The package brings nothing along; the detector brings torch, but not torchvision, which doubles the time.

    Its operator is torchvision's all the same, in the order that could clash: first alone, then the whole package.
    """
    code = (
        "import sys, json; heavy = {'torch', 'torchvision', 'numpy', 'cv2', 'hydra', 'omegaconf', 'pytorch_lightning', "
        "'matplotlib', 'PIL', 'gradio', 'onnxruntime', 'supervision', 'av'}\n"
        "loaded = lambda: sorted({name.split('.')[0] for name in sys.modules} & heavy)\n"
        "import fanet_lightning; first = loaded()\n"
        "import numpy as np; fanet_lightning.FaceDetector.from_pretrained().detect(np.zeros((64, 64, 3), np.uint8))\n"
        "second = loaded()\n"
        "import torch; from fanet_lightning.ops.postprocess import nms; import torchvision; torch.manual_seed(0)\n"
        "boxes = torch.rand(500, 4) * 100; boxes[:, 2:] += boxes[:, :2]; scores = torch.rand(500)\n"
        "kept = nms(boxes, scores, 0.3); same = torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.3))\n"
        "print(json.dumps([first, second, same, len(kept)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second, same, count = json.loads(done.stdout)
    assert first == [] and {*second} <= {"PIL", "cv2", "numpy", "torch"}
    assert same is True and 10 < count < 490
