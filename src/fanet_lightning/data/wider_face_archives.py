"""The archives that WIDER FACE is published in: addresses, sizes, checksums; and a file that names others."""

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fanet_lightning.errors import InputError

HUB = "https://huggingface.co"
_HUB_FILES = f"{HUB}/datasets/CUHK-CSE/wider_face/resolve/main/data"
_HOME = "http://shuoyang1213.me/WIDERFACE/support"
# Of the annotations, what the test images alone are read by: a folder or archive without it is whole for all else.
TEST_NAMES = "wider_face_test_filelist.txt"


@dataclass(frozen=True)
class Archive:
    """A part of the data set.

    ``inner``          the folder in the archive that is taken.
    ``folder``         where it goes, under the root.
    ``unpacked_bytes`` about what it takes on disk; only to see beforehand whether there is room.
    ``images``         how many ``.jpg`` it has, 0 for a part of labels.
    ``files``          the files that a part of labels must have.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int
    inner: str
    folder: str
    unpacked_bytes: int
    images: int = 0
    files: tuple[str, ...] = ()

    def addresses(self, source: str | None) -> tuple[str, ...]:
        """Where to ask, in order: under ``source``, else the official addresses.

        ``HF_ENDPOINT`` replaces the hub's address, as for the hub's own tools.
        """
        if source is not None:
            return (f"{source.rstrip('/')}/{self.name}",)
        endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        return tuple(f"{endpoint}{url[len(HUB) :]}" if url.startswith(f"{HUB}/") else url for url in self.urls)


def _images(split: str, sha256: str, size_bytes: int, images: int) -> Archive:
    name = f"WIDER_{split}"
    # JPEGs do not pack; 2 kB a file are what the last blocks waste.
    return Archive(
        name=f"{name}.zip",
        urls=(f"{_HUB_FILES}/{name}.zip",),
        sha256=sha256,
        size_bytes=size_bytes,
        inner=name,
        folder=name,
        unpacked_bytes=size_bytes * 101 // 100 + 2048 * images,
        images=images,
    )


# Checksums and sizes of the first four: the LFS pointers of the hub's repository, the official mirror (commit
# ba0019b). The MD5 of wider_face_split.zip is torchvision's 0e3767bcf0e326556d407bf5bff5d27c. The numbers of images are
# those of the annotations.
PARTS: dict[str, Archive] = {
    "train": _images(
        "train", "e23b76129c825cafae8be944f65310b2e1ba1c76885afe732f179c41e5ed6d59", 1_465_602_149, 12_880
    ),
    "val": _images("val", "f9efbd09f28c5d2d884be8c0eaef3967158c866a593fc36ab0413e4b2a58a17a", 362_752_168, 3_226),
    "test": _images("test", "3b0313e11ea292ec58894b47ac4c0503b230e12540330845d70a7798241f88d3", 1_844_140_520, 16_097),
    "annotations": Archive(
        name="wider_face_split.zip",
        urls=(f"{_HUB_FILES}/wider_face_split.zip", f"{_HOME}/bbx_annotation/wider_face_split.zip"),
        sha256="c7561e4f5e7a118c249e0a5c5c902b0de90bbf120d7da9fa28d99041f68a8a5c",
        size_bytes=3_591_642,
        inner="wider_face_split",
        folder="wider_face_split",
        unpacked_bytes=9_200_000,
        files=("wider_face_train_bbx_gt.txt", "wider_face_val_bbx_gt.txt", TEST_NAMES),
    ),
    "ground_truth": Archive(
        name="eval_tools.zip",
        urls=(f"{_HOME}/eval_script/eval_tools.zip",),
        sha256="1cf49c8243fa8a1632efe7f6aa09fd7a3994ac838c9008bdbc9dd1d547bb234a",
        size_bytes=8_447_003,
        inner="eval_tools/ground_truth",
        folder="eval_gt",
        unpacked_bytes=1_700_000,
        files=("wider_face_val.mat", "wider_easy_val.mat", "wider_medium_val.mat", "wider_hard_val.mat"),
    ),
}

_COUNTS = ("size_bytes", "unpacked_bytes", "images")
_LISTS = ("urls", "files")


def local_source(source: str | None) -> Path | None:
    """The folder that ``--source`` names, or None where it is an address, or nothing.

    Raises:
        InputError: neither an http address nor a folder.
    """
    if source is None or source.startswith(("http://", "https://")):
        return None
    folder = Path(source.removeprefix("file://"))
    if not folder.is_dir():
        raise InputError(f"--source={source}: neither an http(s) address nor a folder; give one that has the archives")
    return folder


def read_manifest(path: Path) -> dict[str, Archive]:
    """The official archives, with what a JSON file says otherwise: ``{"val": {"size_bytes": …, "sha256": …}, …}``.

    The keys are those of :class:`Archive`; what is left out stays as it is.

    Raises:
        InputError: no such file, no JSON, an unknown part or key, or a value of another type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--manifest={path}: {error.strerror or error}; give a JSON file") from error
    except ValueError as error:
        raise InputError(f"--manifest={path}: not JSON ({error}); mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"--manifest={path}: holds no object of parts; write {{'val': {{…}}}}")
    archives = dict(PARTS)
    keys = [field.name for field in fields(Archive)]
    for part, entry in content.items():
        if part not in PARTS:
            raise InputError(f"--manifest={path}: unknown part {part!r}; take {', '.join(PARTS)}")
        if not isinstance(entry, dict):
            raise InputError(f"--manifest={path}: {part} is {entry!r}, not an object of {', '.join(keys)}")
        checked = {key: _checked(path, part, key, value, keys) for key, value in entry.items()}
        if "size_bytes" in checked and "unpacked_bytes" not in checked:
            # Of another archive the official number says nothing.
            images = checked.get("images", PARTS[part].images)
            checked["unpacked_bytes"] = checked["size_bytes"] * 101 // 100 + 2048 * images
        archives[part] = replace(PARTS[part], **checked)
    return archives


def _checked(path: Path, part: str, key: str, value: object, keys: list[str]) -> Any:
    where = f"--manifest={path}: {part}.{key}"
    if key not in keys:
        raise InputError(f"{where} is unknown; take {', '.join(keys)}")
    if key in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{where}={value!r} is not a whole number of 0 or more")
        return value
    if key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{where}={value!r} is not a list of strings")
        return tuple(value)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}={value!r} is not a string")
    if key == "sha256" and (len(value) != 64 or not set(value.lower()) <= set("0123456789abcdef")):
        raise InputError(f"{where}={value!r} is not a SHA-256 of 64 hexadecimal digits")
    outside = value.startswith("/") or ".." in value.split("/") or "\\" in value
    if (key in ("inner", "folder") and outside) or (key == "name" and Path(value).name != value):
        raise InputError(f"{where}={value!r} leads out of the folder")
    return value
