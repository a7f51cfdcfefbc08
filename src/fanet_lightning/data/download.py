"""Downloads: ``fanet download wider_face`` and ``fanet download vgg16``, resumed and checked by SHA-256.

WIDER FACE is put on disk in the layout that ``data=wider_face`` reads (:mod:`fanet_lightning.data.wider_face`). It is
for research (CC BY-NC-ND 4.0); its home is http://shuoyang1213.me/WIDERFACE/. While it is fetched, a file is
``NAME.part``; it gets its name when its size and SHA-256 are right.
"""

import argparse
import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError, check, counted, first_line, size_text
from fanet_lightning.cli.files import check_writable, file_sha256, replaced

# Attempts without progress after the first, seconds before the first of them (they double), read timeout.
RETRIES, FIRST_WAIT_S, LONGEST_WAIT_S, TIMEOUT_S = 5, 1.0, 120.0, 30.0
_BREAKS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True)
class RemoteFile:
    """A file and its addresses in the order of trying. ``sha256`` hexadecimal, all of it or its first digits.

    Of an archive, the folder ``inner`` goes to ``folder`` under the root: so many ``images`` (``.jpg``), or at least
    these ``files``.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int | None = None
    inner: str = ""
    folder: str = ""
    images: int = 0
    files: tuple[str, ...] = ()

    def fault(self, path: Path) -> str | None:
        """What is wrong with a file on disk: its size or its checksum; None where it is as it should be."""
        size = path.stat().st_size
        if self.size_bytes is not None and size != self.size_bytes:
            return f"has {size:,} bytes, not {self.size_bytes:,}"
        found = file_sha256(path)
        return None if found.startswith(self.sha256) else f"has the SHA-256 {found[:16]}…, not {self.sha256[:16]}…"

    @property
    def unpacked_bytes(self) -> int:
        """About what it takes on disk: text packs to a third, JPEG not at all, and last blocks waste 2 kB a file."""
        size = self.size_bytes or 0
        return size + 2048 * self.images if self.images else 3 * size

    def state(self, root: Path) -> tuple[int, int]:
        """How many of its images or needed files are in ``root`` and not empty, and how many there should be."""
        paths = [root / self.folder / name for name in self.files]
        if self.images:
            paths = [path for path in (root / self.folder).rglob("[!.]*") if path.suffix.lower() == ".jpg"]
        return sum(_size(path) > 0 for path in paths), self.images or len(self.files)


def fetch(file: RemoteFile, folder: Path) -> Path:
    """``folder/name``, fetched unless it is there and sound; progress goes to stderr.

    InputError: no address gave the file, or another process fetches it. What has arrived stays, to be resumed.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.is_file() and file.fault(target) is None:
        return target
    problems, lock = [], FileLock(folder / f".{file.name}.lock")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0), Progress(*columns, console=console) as bar:
            task = bar.add_task(file.name, total=file.size_bytes)
            try:
                for url in file.urls:
                    try:
                        _fetch_from(url, file, part, bar, task)
                        return part.replace(target)
                    except requests.RequestException as error:
                        problems.append(f"{url}: {first_line(error)}")
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        problems = ["another download of it is running"]
    raise InputError(
        f"{folder}: cannot fetch {file.name}: {'; '.join(problems)}; run again, give another --source, or fetch it by "
        "hand and put it there"
    )


def _fetch_from(url: str, file: RemoteFile, part: Path, bar: Progress, task: TaskID) -> None:
    """Bring ``part`` to the complete file, checked; it retries as long as it gets on."""
    failures, is_second = 0, False
    while True:
        before = _size(part)
        try:
            _request(url, file, part, bar, task)
        except requests.RequestException as error:
            failures = 1 if _size(part) > before else failures + 1
            passing = isinstance(error, _BREAKS) and not isinstance(error, requests.exceptions.SSLError)
            if error.response is not None:  # statuses that may pass: RFC 9110, RFC 6585
                passing = error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
            if failures > RETRIES or not passing:
                raise
            wait_s = min(FIRST_WAIT_S * 2 ** (failures - 1), LONGEST_WAIT_S)
            bar.console.print(f"{file.name}: {first_line(error)}; again in {wait_s:.3g} s", markup=False)
            time.sleep(wait_s)
            continue
        reason = file.fault(part)
        if reason is None:
            return
        part.unlink()
        if is_second:  # two versions joined is an accident, the same fault twice is not
            raise requests.RequestException(f"gives a file that {reason}")
        is_second = True


def _request(url: str, file: RemoteFile, part: Path, bar: Progress, task: TaskID) -> None:
    """One request; appends to ``part`` what it brings, or replaces it where the server sends the whole file."""
    offset = _size(part)
    if file.size_bytes is not None and offset >= file.size_bytes:
        return  # the checksum decides what it is worth
    headers = {"Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with requests.get(url, headers=headers, stream=True, timeout=(10, TIMEOUT_S)) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return
        response.raise_for_status()
        appends = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        done, length = offset if appends else 0, response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else file.size_bytes
        # Before anything is overwritten: a login page in place of the file must not cost what has arrived.
        if "html" in response.headers.get("Content-Type", "") or file.size_bytes not in (None, total):
            raise requests.RequestException(f"answers {total} bytes that are not the file (a login page?)")
        bar.reset(task, completed=done, total=total)  # what an earlier run has fetched is no speed of this one
        with part.open("ab" if appends else "wb") as out:
            for chunk in response.iter_content(1 << 16):
                done += out.write(chunk)
                bar.update(task, completed=done)
    if total is not None and done < total:
        raise requests.ConnectionError(f"breaks off after {size_text(done)} of {size_text(total)}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def unpack(archive: Path, inner: str, target: Path) -> int:
    """Unpack what ``target`` lacks of the folder ``inner`` of a zip, and what is empty in it; how many files that were.

    Every file appears complete, by a rename; no other is touched, hidden ones (macOS adds ``._NAME``) are left out.
    """
    written = 0
    with zipfile.ZipFile(archive) as content:
        for info in content.infolist():
            path = PurePosixPath(info.filename)
            hidden = any(part.startswith(".") for part in path.parts)  # ".." among them
            if info.is_dir() or hidden or not path.is_relative_to(inner):
                continue
            out = target / path.relative_to(inner)
            if not _size(out):
                with replaced(out) as temporary, content.open(info) as packed, temporary.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                written += 1
    return written


HUB = "https://huggingface.co"
_HUB_FILES = f"{HUB}/datasets/CUHK-CSE/wider_face/resolve/main/data"
_HOME = "http://shuoyang1213.me/WIDERFACE/support"
# Checksums and sizes of the first four: the LFS pointers of the hub's repository, the official mirror (commit
# ba0019b). The MD5 of wider_face_split.zip is torchvision's 0e3767bcf0e326556d407bf5bff5d27c. The numbers of images are
# those of the annotations.
_SPLITS = {
    "train": ("e23b76129c825cafae8be944f65310b2e1ba1c76885afe732f179c41e5ed6d59", 1_465_602_149, 12_880),
    "val": ("f9efbd09f28c5d2d884be8c0eaef3967158c866a593fc36ab0413e4b2a58a17a", 362_752_168, 3_226),
    "test": ("3b0313e11ea292ec58894b47ac4c0503b230e12540330845d70a7798241f88d3", 1_844_140_520, 16_097),
}
PARTS = {
    split: RemoteFile(f"{name}.zip", (f"{_HUB_FILES}/{name}.zip",), sha256, size_bytes, name, name, images)
    for split, (sha256, size_bytes, images) in _SPLITS.items()
    for name in [f"WIDER_{split}"]
} | {
    "annotations": RemoteFile(
        "wider_face_split.zip", (f"{_HUB_FILES}/wider_face_split.zip", f"{_HOME}/bbx_annotation/wider_face_split.zip"),
        "c7561e4f5e7a118c249e0a5c5c902b0de90bbf120d7da9fa28d99041f68a8a5c", 3_591_642,
        inner="wider_face_split", folder="wider_face_split",
        files=("wider_face_train_bbx_gt.txt", "wider_face_val_bbx_gt.txt", "wider_face_test_filelist.txt"),
    ),
    "ground_truth": RemoteFile(
        "eval_tools.zip", (f"{_HOME}/eval_script/eval_tools.zip",),
        "1cf49c8243fa8a1632efe7f6aa09fd7a3994ac838c9008bdbc9dd1d547bb234a", 8_447_003,
        inner="eval_tools/ground_truth", folder="eval_gt",
        files=("wider_face_val.mat", "wider_easy_val.mat", "wider_medium_val.mat", "wider_hard_val.mat"),
    ),
}  # fmt: skip


def _at_hand(file: RemoteFile, root: Path, source: str | None) -> tuple[Path, bool]:
    """The file, fetched into ``root`` unless it is there or in the folder ``source``; whether it had to be."""
    is_folder = source is not None and not source.startswith(("http://", "https://"))
    path = (Path(str(source)) if is_folder else root) / file.name
    if path.is_file() or is_folder:
        reason = file.fault(path)
        check(reason is None, f"{path}: {reason}; delete it or move it away, and run again to have it fetched")
        return path, False
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    urls = tuple(url.replace(HUB, endpoint) for url in file.urls)
    return fetch(replace(file, urls=(f"{source.rstrip('/')}/{file.name}",) if source else urls), root), True


def download_wider_face(root: Path, parts: Sequence[str] = tuple(PARTS), source: str | None = None) -> list[str]:
    """Fetch, check and unpack what is missing of ``parts``; a line per part says what is there now.

    ``source``: address or folder on disk that has all archives. Those that are in it or in ``root`` are used and stay.
    InputError: no network, no space, another download at work, or an archive that is not the official one.
    """
    lines, states = [], {part: PARTS[part].state(root) for part in parts}
    missing = [PARTS[part] for part, (found, wanted) in states.items() if found < wanted]
    if missing:
        check_writable(root, "--root")
        places = [Path(place) for place in (root, source or root)]
        fetched = [own.size_bytes or 0 for own in missing if not any((p / own.name).is_file() for p in places)]
        needed = sum(own.unpacked_bytes for own in missing) + max(fetched, default=0)
        free = shutil.disk_usage(next(place for place in (root, *root.absolute().parents) if place.exists())).free
        if free < needed:
            raise InputError(
                f"fetching {', '.join(own.name for own in missing)} takes {size_text(needed)}, {size_text(free)} are "
                f"free in {root}; make room, or choose another --root"
            )
    for archive in (PARTS[part] for part in parts):
        line = "complete; nothing to do"
        if archive in missing:
            path, is_new = _at_hand(archive, root, source)
            line = f"{counted(unpack(path, archive.inner, root / archive.folder), 'file')} unpacked"
            found, wanted = archive.state(root)
            check(found >= wanted, f"{root / archive.folder}: {found:,} of {wanted:,} files after unpacking {path}")
            if is_new:
                path.unlink()
        lines.append(f"{root / archive.folder}: {line}")
    return lines


def download_vgg16(root: Path, model: str = "vgg16", source: str | None = None) -> str:
    """torchvision's VGG16 (or ``vgg16_bn``) with ImageNet weights, checked; a line says where it is."""
    from torchvision.models import VGG16_BN_Weights, VGG16_Weights

    url = (VGG16_BN_Weights if model == "vgg16_bn" else VGG16_Weights).IMAGENET1K_V1.url
    name = url.rsplit("/", 1)[-1]
    check_writable(root, "--root")
    file = RemoteFile(name, (url,), name.removesuffix(".pth").rpartition("-")[2])
    path, _ = _at_hand(file, root, source)
    if path.parent != root:
        with replaced(root / name) as temporary:
            shutil.copyfile(path, temporary)
    return f"{root / name}: complete, its SHA-256 begins with {file.sha256}"


def weights_folder() -> Path:
    """Where torch.hub keeps weights; as its documentation says, without the seconds that importing it takes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"


def main(argv: list[str]) -> int:
    """``fanet download``."""
    parser = argparse.ArgumentParser(prog="fanet download", description="The same command resumes a broken transfer.")
    commands = parser.add_subparsers(dest="what", required=True)
    wider = commands.add_parser("wider_face", help="WIDER FACE, 3.7 GB: fetched, checked, unpacked")
    root = Path(os.environ.get("WIDER_FACE_ROOT") or "data/wider_face")
    wider.add_argument("--root", type=Path, default=root, help="folder for the data set (%(default)s)")
    wider.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to fetch (all)")
    vgg = commands.add_parser("vgg16", help="torchvision's VGG16 for weights=imagenet, 553 MB")
    vgg.add_argument("--root", type=Path, default=weights_folder(), help="folder for the file (%(default)s)")
    vgg.add_argument("--model", choices=("vgg16", "vgg16_bn"), default="vgg16", help="_bn: batch normalization")
    for command in (wider, vgg):
        command.add_argument("--source", help="address or folder that has the files, instead of the official ones")
    options = parser.parse_args(argv)
    if options.what == "wider_face":
        print("\n".join(download_wider_face(options.root, options.parts, options.source)))
        print(f"use it with data=wider_face data.root={options.root}; for research only (CC BY-NC-ND 4.0)")
    else:
        print(download_vgg16(options.root, options.model, options.source))
        where = "imagenet" if options.root == weights_folder() else f"{options.root}/FILE"
        print(f"use it with weights={where}; ImageNet's terms (research only) hold for it")
    return 0


if __name__ == "__main__":
    cli.run(main)
