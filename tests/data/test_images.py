"""Image files of every kind, made here, and every way in which a file can be broken."""

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fanet_lightning.data.images import UnreadableImage, image_fault, read_image_rgb, read_image_size, read_shrunk_rgb
from tests.data.wider_files import turned


def gradient(height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth colors, all channels different, no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([60 + 3 * x, 200 - 2 * y, 40 + x + 2 * y], axis=-1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def refused(path: Path) -> str:
    """The reason why a file is not read, in a line that names it."""
    with pytest.raises(UnreadableImage) as error:
        read_image_rgb(path)
    assert str(error.value).startswith(f"{path} cannot be read as an image: ") and "\n" not in str(error.value)
    return error.value.reason


def assert_close(path: Path, expected: np.ndarray, tolerance: int = 4) -> None:
    image = read_image_rgb(path)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"optimize": True},
        {"subsampling": 0},
        {"exif": b"Exif\x00\x00II*\x00\xff\xff\xff\xff"},
    ],
)
def test_jpeg_is_decoded_as_others_do(tmp_path: Path, options: dict[str, object]) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(gradient()), quality=97, **options)
    assert_close(path, gradient(), tolerance=8 if "exif" not in options else 16)
    np.testing.assert_array_equal(read_image_rgb(path), np.asarray(Image.open(path)))
    np.testing.assert_array_equal(read_image_rgb(path), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(gradient()), exif=turned(orientation))
    np.testing.assert_array_equal(read_image_rgb(path), np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert read_image_size(path) == ((40, 56) if orientation < 5 else (56, 40))


def test_grey_black_and_white_and_palette(tmp_path: Path) -> None:
    grey = gradient()[..., 0]
    mask = grey > 128
    palette = Image.fromarray(mask.astype(np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    colors = np.where(mask[..., None], np.uint8([200, 100, 50]), np.uint8([10, 20, 30]))
    for suffixes, image, expected, tolerance in (
        (("jpg", "png", "bmp", "tif"), Image.fromarray(grey), np.repeat(grey[..., None], 3, axis=2), 4),
        (("png",), Image.fromarray(mask), np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), 0),
        (("png", "gif"), palette, colors, 0),
    ):
        for suffix in suffixes:
            assert_close(saved(tmp_path / f"a.{suffix}", image), expected, tolerance)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 4), np.uint8)
    image[..., 0] = 200
    image[:, 2:4, 3] = 255
    image[:, 4:, 3] = 51  # a fifth: 0.2 × 200 + 0.8 × 255 = 244, 0.8 × 255 = 204
    expected = np.repeat(np.uint8([[[255, 255, 255], [200, 0, 0], [244, 204, 204]]]), 2, axis=1).repeat(4, axis=0)
    for suffix in ("png", "webp"):
        path = saved(tmp_path / f"a.{suffix}", Image.fromarray(image), lossless=True, exact=True)
        assert_close(path, expected, tolerance=1)
    grey = Image.fromarray(image[..., [0, 3]], mode="LA")
    assert_close(saved(tmp_path / "g.png", grey), expected[..., [0, 0, 0]], tolerance=1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert_close(saved(tmp_path / "p.png", palette, transparency=0), np.uint8([[[255] * 3, [200, 100, 50]]]), 0)


def test_sixteen_bits(tmp_path: Path) -> None:
    # 128 = round(32896 / 257), 1 = round(129 / 257), 0 = round(128 / 257)
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    grey = np.uint8([[0, 0, 1, 1, 128, 255]])
    color = np.stack([values, values * 0, values * 0 + 65535], axis=-1)  # BGR
    rgb = np.stack([grey * 0 + 255, grey * 0, grey], axis=-1)
    alpha = np.concatenate([color, np.full((1, 6, 1), 32768, np.uint16)], axis=-1)
    for name, pixels, expected, tolerance in (
        ("g.png", values, np.repeat(grey[..., None], 3, axis=2), 0),
        ("g.tif", values, np.repeat(grey[..., None], 3, axis=2), 0),
        ("g.pgm", values, np.repeat(grey[..., None], 3, axis=2), 0),
        ("c.png", color, rgb, 1),  # the high bytes
        ("a.png", alpha, ((rgb.astype(int) + 255) / 2).round().astype(np.uint8), 1),  # half of it and half of white
    ):
        assert cv2.imwrite(str(tmp_path / name), pixels)
        assert_close(tmp_path / name, expected, tolerance)


def cmyk_jpeg(inks: np.ndarray, adobe: bool) -> bytes:
    """A CMYK JPEG; with Adobe's marker the inks are stored inverted (as Pillow writes them), without it as they are."""
    buffer = io.BytesIO()
    Image.fromarray(inks if adobe else 255 - inks, mode="CMYK").save(buffer, "JPEG", quality=100)
    before, marker, after = buffer.getvalue().partition(b"\xff\xee")
    return before + (marker + after if adobe else after[int.from_bytes(after[:2], "big") :])


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk(tmp_path: Path, adobe: bool) -> None:
    inks = np.repeat(np.uint8([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 255, 255, 0]]]), 16, axis=1)
    (tmp_path / "a.jpg").write_bytes(cmyk_jpeg(inks.repeat(16, axis=0), adobe))
    shown = read_image_rgb(tmp_path / "a.jpg")[8, 8::16].astype(int)
    assert np.abs(shown - [(255, 255, 255), (0, 255, 255), (0, 0, 0), (255, 0, 0)]).max() <= 6


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"exif": turned(1)}], ids=["plain", "progressive", "exif"]
)
def test_a_truncated_file_is_never_half_an_image(tmp_path: Path, options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    content = saved(tmp_path / "a.jpg", Image.fromarray(noise), **options).read_bytes()
    cut = tmp_path / "cut.jpg"
    for keep in (0, 1, 2, 3, 10, 200, 700, len(content) // 2, len(content) - 100, len(content) - 2, len(content) - 1):
        cut.write_bytes(content[:keep])
        refused(cut)
    # A tail of zeros, as broken copies have it.
    cut.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    refused(cut)
    # Bytes after the image are harmless.
    for after in (b"\xff", b"trailer\xff\xda" * 50):
        cut.write_bytes(content + after)
        np.testing.assert_array_equal(read_image_rgb(cut), read_image_rgb(tmp_path / "a.jpg"))
    for suffix in ("png", "webp", "bmp", "gif", "tif"):
        other = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise)).read_bytes()
        assert read_image_rgb(tmp_path / f"a.{suffix}").shape == (96, 128, 3)
        cut.write_bytes(other[: len(other) // 2])
        refused(cut)
    # The end marker of a thumbnail is not the image's.
    content = saved(tmp_path / "b.jpg", Image.fromarray(gradient()), comment=b"thumbnail\xff\xd9").read_bytes()
    cut.write_bytes(content[:-30] + bytes(30))
    assert "end marker" in refused(cut)


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    (tmp_path / "folder.jpg").mkdir()
    heic = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic" + bytes(100)
    for name, content, says in (
        ("absent.jpg", None, "No such file"), ("folder.jpg", None, "Is a directory"), ("empty.jpg", b"", "is empty"),
        ("zip.jpg", b"PK\3\4" + bytes(90), "b'PK"), ("text.jpg", b"<html>", "b'<htm'"), ("phone.heic", heic, "heif"),
        ("start.jpg", b"\xff\xd8\xff", ""),
    ):  # fmt: skip
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert says in refused(tmp_path / name)
        assert says in image_fault(tmp_path / name).reason  # type: ignore[union-attr]
        with pytest.raises(UnreadableImage, match=f"{name}.*{says}"):
            read_image_size(tmp_path / name)
    assert "8 bits" in refused(saved(tmp_path / "float.tif", Image.fromarray(np.zeros((4, 4), np.float32))))


def test_huge_images_are_named_before_they_are_decoded(tmp_path: Path) -> None:
    bomb = bytearray(saved(tmp_path / "bomb.png", Image.fromarray(gradient())).read_bytes())
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert "178,956,970" in refused(tmp_path / "bomb.png")


def test_real_images_decode_as_pillow_does(shared_data: Path) -> None:
    folder = shared_data / "wider_face" / "WIDER_val" / "images"
    for path in sorted(folder.glob("*/*.jpg"))[::200]:
        np.testing.assert_array_equal(read_image_rgb(path), np.asarray(Image.open(path)))


# Sizes and soundness without decoding


def images_of_all_kinds(folder: Path) -> Iterator[Path]:
    """Both decoders' formats, plain and turned, with a head longer than what is read at first."""
    color = Image.fromarray(gradient(40, 56))
    plain = saved(folder / "plain.jpg", color).read_bytes()
    long_head = b"".join(b"\xff\xfe" + struct.pack(">H", 65_002) + bytes(65_000) for _ in range(3))
    (folder / "long.jpg").write_bytes(plain[:2] + long_head + plain[2:])
    (folder / "cmyk.jpg").write_bytes(cmyk_jpeg(np.full((40, 56, 4), 90, np.uint8), adobe=True))
    yield from (folder / f"{name}.jpg" for name in ("plain", "long", "cmyk"))
    yield saved(folder / "progressive.jpg", color, progressive=True)
    yield saved(folder / "grey.jpg", color.convert("L"))
    yield saved(folder / "palette.gif", color.convert("P"))
    yield from (saved(folder / f"turned.{suffix}", color, exif=turned(6)) for suffix in ("jpg", "png"))
    yield from (saved(folder / f"a.{suffix}", color) for suffix in ("png", "bmp"))


def test_sizes_and_faults_are_those_of_the_decoded_images(tmp_path: Path) -> None:
    """Cut anywhere, the check says what reading says."""
    rng, refusals, cut = np.random.default_rng(0), 0, tmp_path / "cut"
    for path in images_of_all_kinds(tmp_path):
        assert read_image_size(path) == read_image_rgb(path).shape[:2], path.name
        assert image_fault(path) is None
        content = path.read_bytes()
        for _ in range(20):
            cut.write_bytes(content[: int(rng.integers(0, len(content)))])
            fault = image_fault(cut)
            if fault is None:
                read_image_rgb(cut)
            else:
                assert refused(cut) == fault.reason
                refusals += 1
    assert refusals > 150 and read_image_size(tmp_path / "turned.jpg") == (56, 40)


def test_a_photo_is_shrunk_by_the_decoder_as_far_as_is_enough(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 401), np.linspace(0, 255, 301))
    pixels = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, exif=turned(6))  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned(6))
    whole = read_image_rgb(tmp_path / "a.jpg")
    assert whole.shape == (401, 301, 3)
    for scale, shape in ((0.51, (401, 301)), (0.5, (201, 151)), (0.26, (201, 151)), (0.2, (101, 76)), (0.1, (51, 38))):
        image, height, width = read_shrunk_rgb(tmp_path / "a.jpg", lambda height, width, scale=scale: scale)
        assert image.shape[:2] == shape and (height, width) == (401, 301)
        expected = cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - expected).mean() < 3
    image, height, width = read_shrunk_rgb(tmp_path / "a.png", lambda height, width: 0.1)
    assert image.shape[:2] == (height, width) == (401, 301)
