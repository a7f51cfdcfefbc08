"""Outputs that appear whole or not at all; text in whichever Unicode."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fanet_lightning.errors import InputError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the place of ``path`` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp gives 0600; what a person finds in an output folder follows the umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """As :func:`replaced`, for a folder: what stood at ``path`` before is removed only when the new one is whole."""
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


@contextmanager
def without_empty_folders(folder: Path) -> Iterator[None]:
    """If the block fails, remove ``folder`` and those of its parents that it has made, as far as they are empty."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # a folder that is not empty, or was never made, ends it: so do those around it
            for place in made:
                if place.exists():
                    place.rmdir()
        raise


def check_writable(folder: Path, key: str = "out") -> None:
    """Refuse early, before hours of work, a folder that cannot be made or written.

    Raises:
        InputError: a file stands in the way, or permission is missing; names ``key`` and the path.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{key}={folder}: {existing} is not a folder; choose another {key}")
    try:
        # Asking for permission is not enough: the file system may be read-only, or full.
        Path(tempfile.mkdtemp(dir=existing, prefix=".fanet_")).rmdir()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{key}={folder}: cannot write in {existing} ({reason}); choose another {key}") from error


def check_names_free(folder: Path, names: Iterable[str], what: str, key: str = "out") -> None:
    """Refuse a folder of something else in which a file that is about to be written has its name already.

    Whatever has other names is no hindrance, and nobody touches it; nor is an empty folder.

    Args:
        names: what would be written into ``folder``.
        what: whose files they would be, for the message: ``an evaluation``.

    Raises:
        InputError: names the first of them.
    """
    for name in names:
        path = folder / name
        if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
            raise InputError(f"{key}={folder}: {name} is there and not of {what}; move it away, or give another {key}")


def matching_names(folder: Path, patterns: Iterable[str]) -> Iterator[str]:
    """Names in ``folder`` that match one of the glob patterns, those of the first pattern first."""
    return (path.name for pattern in patterns for path in sorted(folder.glob(pattern)))


def decoded_text(content: bytes) -> str:
    """Text in UTF-8, -16 or -32: told by its mark or, as JSON's is (RFC 4627), by where the zeros are.

    Raises:
        UnicodeDecodeError: it is none of them, or has zeros, as `find -print0` writes them.
    """
    text = content.decode(json.detect_encoding(content))
    if "\0" in text:
        raise UnicodeDecodeError("utf-8", content, content.find(b"\0"), content.find(b"\0") + 1, "a zero")
    return text


def content_if_any(path: Path) -> bytes | None:
    """What a file holds that an earlier process may have left; None where there is none.

    Raises:
        InputError: it is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); remove it") from error
