"""Atomic writes of files and folders, file hashes, lists of images."""

import difflib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from fanet_lightning.cli.errors import InputError


@contextmanager
def replaced(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A temporary path in ``folder``, of the same file system and by default next to ``path``.

    It replaces ``path`` when the block ends well, and is removed otherwise.
    """
    for place in {path.parent, folder or path.parent}:
        place.mkdir(parents=True, exist_ok=True)
    temporary = (folder or path.parent) / f".{secrets.token_hex(8)}{path.suffix}"
    try:
        temporary.touch(exist_ok=False)  # with the permissions of any other file
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copied(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy a file, its folders made; ``link``: as a hard link, where the file system has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        with suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """As :func:`replaced`, for a folder: what stood at ``path`` before is removed only when the new one is whole."""
    path = path.resolve()  # of a link to a folder that folder
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    retired = temporary.with_suffix(".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.replace(retired)
        try:
            temporary.replace(path)
        except OSError:
            if retired.exists():
                retired.replace(path)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path, key: str = "out") -> None:
    """Refuse early, before hours of work, a folder that cannot be made or written, with ``key`` and the path."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        # Asking for permission is not enough: the file system may be read-only, or full.
        Path(tempfile.mkdtemp(dir=existing, prefix=".fanet_")).rmdir()
    except OSError as error:
        reason = f"cannot write in {existing} ({error.strerror})"
        raise InputError(f"{key}={folder}: {reason}; choose another {key}") from error


def check_names_free(folder: Path, patterns: Iterable[str], what: str) -> None:
    """InputError for a folder of something else that has a name, by glob patterns, of what is about to be written."""
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        if not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"out={folder}: {path.name} is there and not of {what}; move it away, or give another out")


def check_replaceable(folder: Path, what: str, own: Sequence[str] | Callable[[Path], bool]) -> None:
    """InputError for a folder that :func:`replaced_folder` would replace although an entry is not its ``own``.

    Names: the first is a file without which none of the others is. Nor for one that cannot be renamed.
    """
    if folder.is_mount() or folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is the working folder or a mounted one, which cannot be replaced; give one in it")
    is_own = own if callable(own) else lambda entry: entry.name in own and (folder / own[0]).is_file()
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    foreign = next((path.name for path in entries if path == folder or not is_own(path)), None)
    if foreign is not None:
        raise InputError(f"{folder} holds something else than {what} ({foreign}); give an empty or new folder")


def decoded_text(content: bytes) -> str:
    """Text in UTF-8, -16 or -32: told by its mark or, as JSON's is (RFC 4627), by where the zeros are.

    UnicodeDecodeError: it is none of them, or has zeros, as `find -print0` writes them.
    """
    text = content.decode(json.detect_encoding(content))
    if "\0" in text:
        raise UnicodeDecodeError("utf-8", content, content.find(b"\0"), content.find(b"\0") + 1, "a zero")
    return text


def lines_of(path: Path, what: str, remedy: str) -> list[str]:
    """The lines of a list that a person has written; InputError with ``what`` and ``remedy``: no file, or no text."""
    try:
        return decoded_text(Path(path).read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"cannot read {what}: {reason}; {remedy}") from error


# What data/images.py decodes, by the extensions in use.
IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".tga", ".mpo", ".avif",
})  # fmt: skip


def has_image_extension(name: str) -> bool:
    """Whether a name ends like an image file, in any letter case."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def without_extension(name: str) -> str:
    """The name without an image's extension; other dots stay: ``a.b`` is ``a.b``, ``a.b.JPG`` is ``a.b``."""
    return name[: -len(PurePosixPath(name).suffix)] if has_image_extension(name) else name


def _raised(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # nothing is there
        raise error


def walk_files(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, relative, POSIX slashes; hidden files and folders are left out."""
    for place, folders, files in os.walk(folder, onerror=_raised, followlinks=True):
        below = [Path(place, name).absolute() for name in folders if not name.startswith(".")]
        # No link back to a folder on the way here.
        folders[:] = [
            own.name for own in below if not (own.is_symlink() and own.resolve() in map(Path.resolve, own.parents))
        ]
        prefix = "" if Path(place) == folder else f"{Path(place).relative_to(folder).as_posix()}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def read_image_list(path: Path) -> list[tuple[int, str]]:
    """A list of images: (line number from 1, image id) in the file's order; InputError: none, or one given twice.

    One ``event/name`` a line, with or without ``.jpg``; blank lines, what follows ``#`` and hidden files are skipped.
    """
    names: dict[str, int] = {}
    lines = lines_of(path, f"the list of images {path}", "give a text file with one name a line")
    for number, line in enumerate(lines, start=1):
        image_id = ("" if line.lstrip().startswith("#") else line.partition(" #")[0]).strip().removesuffix(".jpg")
        if image_id in names:
            raise InputError(f"{path}:{number}: '{image_id}' is in line {names[image_id]} already; keep one of them")
        if image_id and not image_id.replace("\\", "/").rpartition("/")[2].startswith("."):
            names[image_id] = number
    if not names:
        raise InputError(f"the list of images {path} names no image; write one a line")
    return [(number, image_id) for image_id, number in names.items()]


def find_listed(
    path: Path, ids: Collection[str], *, folder: Path | None = None, root: Path | None = None
) -> list[tuple[int, str, str | None]]:
    """The images that a list (:func:`read_image_list`) means: (line number from 1, the line, its image id or None).

    A line is one of ``ids``, or the path of an image as ``find`` writes it: absolute, or relative to the list's folder,
    the working folder, ``root`` of the data set or ``folder`` of the images; where that is not known, any leading
    folders. The extension and the slashes' direction may differ. InputError: two lines that mean the same image.
    """
    lines, known = dict[str, int](), set(ids)
    found: list[tuple[int, str, str | None]] = []
    for number, written in read_image_list(path):
        meant = _meant(written, Path(path).parent, folder, root)
        own_id = next((name for each in meant for name in (each, without_extension(each)) if name in known), None)
        if own_id is not None and lines.setdefault(own_id, number) != number:
            where = f"is the image {own_id}, which is in line {lines[own_id]} already"
            raise InputError(f"{path}:{number}: '{written}' {where}; keep one of them")
        found.append((number, written, own_id))
    return found


def _meant(written: str, near: Path, folder: Path | None, root: Path | None) -> Iterator[str]:
    """What a line may mean, relative to the folder of images."""
    yield written
    name = PurePosixPath(written.replace("\\", "/"))
    yield name.as_posix()
    if folder is None:
        yield from ("/".join(name.parts[start:]) for start in range(1, len(name.parts)))
        return
    for base in (near, Path(), root, folder):
        if base is not None:
            place = Path(os.path.abspath(base / name))  # noqa: PTH100  # without following links, which resolve() does
            for own, whole in (
                (place, Path(os.path.abspath(folder))),  # noqa: PTH100
                (place.parent.resolve() / place.name, folder.resolve()),
            ):
                if own.is_relative_to(whole):
                    yield own.relative_to(whole).as_posix()


def nearest_name(written: str, names: Collection[str]) -> str | None:
    """The name that was probably meant: the same one in another folder or letter case, else the most similar one."""
    last = written.rpartition("/")[2].casefold()
    same = sorted(name for name in names if name.rpartition("/")[2].casefold() == last)
    near = same or difflib.get_close_matches(written, sorted(names), n=1)
    return near[0] if near else None


def file_sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
