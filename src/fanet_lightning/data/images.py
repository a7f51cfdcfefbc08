"""Image files → RGB arrays: decoding, sizes, HEIC."""

import importlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from fanet_lightning.cli.errors import InputError

# ISO 14496-12 brands of files whose images are HEVC.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def heic_plug_in() -> bool:
    """Make Pillow read HEIC from now on; False where the package pillow-heif is not installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


Image8 = npt.NDArray[np.uint8]

# Twice Pillow's default limit, where Pillow itself refuses: 179 megapixels, 0.5 GB decoded.
MAX_PIXELS = 178_956_970
# Pillow's images are read at their first use, and not by two threads at a time.
_READING_PILLOW = threading.Lock()
_WITHOUT_WARNINGS = threading.Lock()


class UnreadableImage(InputError):
    """An image file that cannot be decoded completely; the message names the file and the reason."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}; replace the file or leave it out")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["UnreadableImage"], tuple[Path | str, str]]:
        # Worker processes hand exceptions over by pickle.
        return UnreadableImage, (self.path, self.reason)


def read_image_rgb(path: Path | str) -> Image8:
    """(H, W, 3) uint8 RGB, C-contiguous, upright: the EXIF orientation is applied (WIDER FACE's images carry none).

    Gray is repeated, CMYK converted (with Adobe's marker stored inverted), a palette looked up, transparency laid
    over white, 16 bits of gray brought to 8 (divided by 257, rounded), of 16-bit color the high bytes taken. Gray and
    CMYK with a color profile become sRGB by it; RGB stays as it is stored, in the colors of :func:`color_profile`. Of
    an animation, the first frame.

    UnreadableImage: missing, empty, not an image, cut short, over 179 megapixels, or 32-bit pixels, which have no fixed
    range. A JPEG that is damaged in its middle but ends properly decodes, as in every libjpeg program.
    """
    return decode_image_rgb(file_bytes(path), path)


def read_shrunk_rgb(path: Path | str, scale: Callable[[int, int], float]) -> tuple[Image8, int, int]:
    """As :func:`read_image_rgb`, a JPEG at 1/2, 1/4 or 1/8 where that is enough; and height and width of the whole.

    ``scale``: of a height and width, symmetric in them: what the image will be multiplied by at most.
    """
    return _decoded(file_bytes(path), path, scale)


def file_bytes(path: Path | str) -> bytes:
    """The bytes of a file; an UnreadableImage where it cannot be read."""
    with _named_errors(path):
        if Path(path).is_fifo():  # reading it would wait for somebody to write
            raise UnreadableImage(path, "not a file")
        return Path(path).read_bytes()


def decode_image_rgb(content: bytes, path: Path | str = "<bytes>") -> Image8:
    """As :func:`read_image_rgb`, from the file's bytes; ``path`` is for messages."""
    return _decoded(content, path)[0]


def _decoded(
    content: bytes, path: Path | str, scale: Callable[[int, int], float] = lambda height, width: 1.0
) -> tuple[Image8, int, int]:
    """The pixels, a JPEG's shrunk as far as ``scale`` allows; height and width of the whole image."""
    with opened_image(content, path) as image:
        frame = pillow_frame(image)
        # What OpenCV gets right: gray or three channels, without a profile of gray.
        profiled = image.mode == "L" and "icc_profile" in image.info
        if image.format == "JPEG" and image.mode in ("L", "RGB") and not profiled:
            wanted = scale(frame.height, frame.width)
            array = _decode_jpeg(content, next((k for k in (8, 4, 2) if k * wanted <= 1), 1))
            if array is not None:
                width, height = frame.upright_wh
                return _oriented(array, frame.orientation), height, width
        image.load()
        array = _oriented(_to_rgb(image, path), _orientation(image))
        return array, *array.shape[:2]


@contextmanager
def opened_image(content: bytes, path: Path | str) -> Iterator[Image.Image]:
    """The image in a file's bytes, its pixels not read yet; an UnreadableImage as :func:`read_image_rgb`."""
    if is_cut_short(content):
        raise UnreadableImage(path, "the file is cut short (a JPEG without its end marker)")
    with _opened(io.BytesIO(content), path) as image:
        yield image


def pillow_image_rgb(image: Any, name: str = "the PIL image") -> Image8:
    """As :func:`read_image_rgb`, from a ``PIL.Image.Image`` of any mode; ``name`` stands for the path.

    The EXIF orientation that it carries is applied: Pillow keeps it on copies, resized ones too.
    """
    if not all(image.size):
        raise UnreadableImage(name, "it has no pixels")
    with _named_errors(name), _READING_PILLOW:  # the same image may be asked for in several threads
        image.load()
        return _oriented(_to_rgb(image, name), _orientation(image))


def color_profile(image: Any) -> bytes:
    """The ICC profile that the pixels of :func:`decode_image_rgb` are in; empty for sRGB, and where it was applied."""
    profile = image.info.get("icc_profile") or b""
    return profile if _color_space(profile) == b"RGB " and image.mode != "CMYK" else b""


def glance(content: bytes) -> tuple[int, bytes]:
    """The number of pixels and :func:`color_profile`, from the head of a file's bytes; nothing of a damaged one."""
    try:
        with _opened(io.BytesIO(content), "<bytes>") as image:
            return image.size[0] * image.size[1], color_profile(image)
    except UnreadableImage:  # decoding says what is wrong
        return 0, b""


def _color_space(profile: bytes) -> bytes:
    """From an ICC header (ICC.1, 7.2), ``RGB ``, ``GRAY``, ``CMYK`` …; empty where it is none."""
    return profile[16:20] if profile[36:40] == b"acsp" else b""


def _by_profile(image: Any, profile: bytes) -> Any:
    """Gray or CMYK as sRGB; the image itself where the profile is damaged."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image


class ImageFrame(NamedTuple):
    """``width`` and ``height`` as stored, and the EXIF ``orientation``, 1 … 8."""

    width: int
    height: int
    orientation: int = 1

    @property
    def upright_wh(self) -> tuple[int, int]:
        """As the image is shown, trained on and scored."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of :func:`read_image_frame`, upright."""
    width, height = read_image_frame(path).upright_wh
    return height, width


def pillow_frame(image: Any) -> ImageFrame:
    """The frame of an opened ``PIL.Image.Image`` whose pixels have not been read yet."""
    width, height = image.size
    orientation = _orientation(image)
    if image.format == "TIFF" and orientation >= 5:  # of these alone Pillow states the size as shown
        width, height = height, width
    return ImageFrame(width, height, orientation)


def read_image_frame(path: Path | str) -> ImageFrame:
    """Size and orientation from the head of a file alone; an UnreadableImage as :func:`read_image_rgb`."""
    with _named_errors(path), Path(path).open("rb") as file, _opened(file, path) as image:
        return pillow_frame(image)


def image_fault(path: Path | str) -> UnreadableImage | None:
    """Why :func:`read_image_rgb` would refuse a file, or None. A JPEG passes by its head and end marker, undecoded:
    damaged tables between them are not found.
    """
    try:
        content = file_bytes(path)
        with opened_image(content, path) as image:
            usual = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        if not usual:
            decode_image_rgb(content, path)
    except UnreadableImage as error:
        return error
    return None


def is_cut_short(content: bytes) -> bool:
    """Whether a file is a JPEG without an end marker after the start of its first scan: decoders fill it up.

    Data bytes never look like a marker. What follows the image (a phone's video) may hold any bytes.
    """
    position = 2
    while content[:3] == b"\xff\xd8\xff" and position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return content.rfind(b"\xff\xd9", position) < 0
    return False


def _decode_jpeg(content: bytes, shrink: int) -> Image8 | None:
    """By OpenCV, as stored, shrunk by 1, 2, 4 or 8 in libjpeg; None where it cannot, and Pillow says why."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    # Of these names GRAYSCALE is the reduction alone; COLOR would ask for BGR as well.
    flags |= getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{shrink}") if shrink > 1 else 0
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    return None if image is None else np.ascontiguousarray(image, dtype=np.uint8)


@contextmanager
def _opened(file: BinaryIO, path: Path | str) -> Iterator[Image.Image]:
    """The image in ``file``; its pixels are not read yet."""
    start = file.read(12)
    file.seek(0)
    unknown = f"not an image file (it begins with {start[:4]!r})" if start else "the file is empty"
    if start[4:8] == b"ftyp" and start[8:12] in _BRANDS and not heic_plug_in():
        unknown = "HEIC needs a plug-in (pip install pillow-heif)"
    with _named_errors(path, unknown):
        with _quietly():
            opened = Image.open(file)
        with opened as image:
            yield image


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings: of sizes between its limit and ours, and of broken EXIF blocks."""
    with _WITHOUT_WARNINGS, warnings.catch_warnings():  # which is no context of one thread alone
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _named_errors(path: Path | str, unknown: str = "") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:  # the image may be sound
        raise InputError(f"{path} does not fit into the memory that is free; free some, or shrink it") from error
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = unknown
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"more than {MAX_PIXELS:,} pixels; shrink it first"
        raise UnreadableImage(path, reason) from error


def _to_rgb(image: Any, path: Path | str) -> Image8:
    profile = image.info.get("icc_profile") or b""
    space = _color_space(profile)
    depth16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # Pillow's of 16-bit PGM
    if image.mode in ("I", "F") and not depth16:
        raise UnreadableImage(path, f"{image.mode}-type pixels (32 bits) have no fixed range; convert it to 8 bits")
    gray = depth16 or image.mode.startswith(("1", "L"))
    if depth16:
        image = Image.fromarray(np.floor(np.asarray(image).astype(np.uint16) / 257 + 0.5).astype(np.uint8))
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Pillow takes Adobe's inversion for granted; without Adobe's marker the inks are stored as they are.
        image = Image.fromarray(255 - np.asarray(image), mode="CMYK")
    if image.mode == "CMYK" and space == b"CMYK":
        image = _by_profile(image, profile)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        ground = Image.new("RGBA", over.size, "white")  # hidden colors are undefined
        image = Image.alpha_composite(ground, over)
    if gray and space == b"GRAY":
        image = _by_profile(image.convert("L"), profile)
    return np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)


def _orientation(image: Any) -> int:
    """EXIF orientation 1 … 8; 1 where there is none or where it cannot be read."""
    # Pillow takes XMP's in its place; JPEGs without EXIF are decoded by others, which do not.
    if image.format in ("JPEG", "MPO") and "exif" not in image.info:
        return 1
    try:
        with _quietly():
            value = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block is no reason to refuse the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented(image: Image8, orientation: int) -> Image8:
    """Undo the camera's orientation (EXIF 2.3, tag 274): 2–4 mirror and turn by 180°, 5–8 swap the axes as well."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
