"""One HTTP request for one file, and everything that a server may get wrong in its answer.

Whatever a server says about ranges, lengths and versions is taken as a hint that saves work; the checksum of the whole
file decides (:mod:`fanet_lightning.data.download`).
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fanet_lightning.data.disk_space import check_space, size_text
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.files import replaced

if TYPE_CHECKING:
    import requests

# Statuses that may be others in a moment (RFC 9110, RFC 6585); 520 … 524 are those of a common cache in front of hosts.
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_CHUNK_BYTES = 1 << 16
# What is no page is read no further than this to find out.
_BEGINNING_BYTES = 512
_MARKUP = "answers a page of markup instead of the file (a proxy's or a login page)"
LONGEST_WAIT_S = 120.0

Say = Callable[[str], None]
"""Takes one line for the person who waits."""
Progress = Callable[[int, int | None], None]
"""Takes the bytes done and their total, None where nobody knows it."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteFile:
    """A file and where it lies.

    ``urls``        tried in this order.
    ``sha256``      hexadecimal, whole or its first digits (torchvision has eight of them in a file's name).
    ``size_bytes``  None where nobody knows it before.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int | None = None


class Refused(Exception):
    """This address will not give the file, however often it is asked."""


class BrokenOff(Exception):
    """It may go on in a moment; ``wait_s`` as the server asks for it, else None."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Unresolved(BrokenOff):
    """The host's name has no address: without a network it stays so, and a resolver's hiccup is short."""


def transfer(
    session: "requests.Session", url: str, file: RemoteFile, part: Path, timeout_s: float, say: Say, progress: Progress
) -> bool:
    """One request; appends to ``part`` what it brings.

    Returns:
        Once the last byte is there: whether all of it came with this request, so that nothing was joined.

    Raises:
        BrokenOff: another request may bring more.
        Refused: none will.
        InputError: the disk takes no more.
    """
    import requests

    if file.size_bytes is not None and size_on_disk(part) >= file.size_bytes:
        if size_on_disk(part) == file.size_bytes:
            return False
        discard(part)
    offset = size_on_disk(part)
    known = _validators(part, url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if strong := known.get("etag") or known.get("last_modified"):
            headers["If-Range"] = strong
    try:
        with session.get(url, headers=headers, stream=True, timeout=(10, timeout_s)) as response:
            start, total, validators = _understand(response, url, file, part, offset, known)
            if offset and not start:
                say(f"{file.name}: the server begins anew, it has another version or cannot go on")
            _receive(response, file, part, start, total, validators, progress)
            return start == 0
    except requests.RequestException as error:
        raise _classified(error, timeout_s) from error


def _understand(
    response: "requests.Response", url: str, file: RemoteFile, part: Path, offset: int, known: dict[str, str]
) -> tuple[int, int | None, dict[str, str]]:
    """Where the body begins in the file, the file's size, and the validators that came with it.

    Nothing on disk is touched, unless the part is of no use any more.
    """
    status = response.status_code
    if status in _PASSING:
        raise BrokenOff(f"answers {_status(status)}", _retry_after_s(response.headers.get("Retry-After")))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        discard(part)
        raise BrokenOff("has no bytes after those at hand", 0)
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise Refused(f"answers {_status(status)}")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise Refused(_MARKUP)
    start, total = 0, _whole(response.headers.get("Content-Length"))
    if response.headers.get("Content-Encoding", "identity") != "identity":
        total = None
    etag = response.headers.get("ETag")
    if status == HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        start, total = (int(span[1]), _whole(span[3])) if span else (-1, None)
        if start != offset or (known.get("etag") and etag and etag != known["etag"]):
            discard(part)
            raise BrokenOff("answers another range or version than was asked for", 0)
    if None not in (file.size_bytes, total) and total != file.size_bytes:
        # A page has another size as well, but that is not what is wrong with it.
        if not start and _is_markup(_beginning(response)):
            raise Refused(_MARKUP)
        raise Refused(f"announces {total:,} bytes, {file.name} has {file.size_bytes:,}: it is another file")
    validators = {"url": url}
    # Only a strong validator may join two answers (RFC 9110, 13.1.5).
    if etag and not etag.startswith("W/"):
        validators["etag"] = etag
    elif "Last-Modified" in response.headers:
        validators["last_modified"] = response.headers["Last-Modified"]
    return start, file.size_bytes if file.size_bytes is not None else total, validators


def _receive(
    response: "requests.Response",
    file: RemoteFile,
    part: Path,
    start: int,
    total: int | None,
    validators: dict[str, str],
    progress: Progress,
) -> None:
    done = start
    if total is not None:
        check_space(part.parent, total - max(start, size_on_disk(part)), f"{file.name} of {size_text(total)} still")
    # The old content goes when the first new byte is there, not before.
    out = on_disk(part, lambda: part.open("r+b" if part.exists() else "wb"))
    try:
        progress(done, total)
        for chunk in response.iter_content(_CHUNK_BYTES):
            if not done and _is_markup(chunk):
                raise Refused(_MARKUP)
            if total is not None and done + len(chunk) > total:
                raise Refused(f"sends more than the {total:,} bytes of {file.name}: it is another file")
            if done == start:
                on_disk(part, lambda: _write_json(sidecar(part), validators))
                out.seek(start)
                out.truncate()
            on_disk(part, lambda piece=chunk: out.write(piece))  # type: ignore[misc]
            done += len(chunk)
            progress(done, total)
    finally:
        # Closing writes what is buffered, so it can fail as a write does.
        on_disk(part, out.close)
    if total is not None and done < total:
        raise BrokenOff(f"breaks off after {size_text(done)} of {size_text(total)}")


def _beginning(response: "requests.Response") -> bytes:
    """The first bytes of an answer that is not used any further; none where it breaks off."""
    import requests

    with suppress(requests.RequestException):
        return next(response.iter_content(_BEGINNING_BYTES), b"")
    return b""


def _is_markup(content: bytes) -> bool:
    return content.lstrip()[:1] == b"<"


def _classified(error: "requests.RequestException", timeout_s: float) -> Exception:
    """A passing interruption or a refusal, with a reason that a person can read."""
    import requests

    chain = _chain(error)
    names = " ".join(type(link).__name__ for link in chain)
    for name, reason in (
        ("ProxyError", "cannot be reached: the proxy does not connect"),
        ("NameResolutionError", "cannot be reached: its name is not resolved (no network?)"),
        ("ConnectionRefusedError", "cannot be reached: the connection is refused"),
        ("Timeout", f"is silent for {timeout_s:.3g} s"),
        ("IncompleteRead", "breaks off"),
        ("ConnectionResetError", "breaks off"),
        ("RemoteDisconnected", "breaks off without an answer"),
        ("NewConnectionError", "cannot be reached (no network?)"),
    ):
        if name in names and not isinstance(error, requests.exceptions.SSLError):
            return (Unresolved if "NameResolutionError" in names else BrokenOff)(reason)
    if isinstance(error, requests.exceptions.SSLError):
        return Refused(f"has a certificate that is not trusted ({first_line(chain[-1])})")
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return Refused("redirects in a circle")
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return BrokenOff(f"breaks off ({first_line(chain[-1])})")
    return Refused(f"cannot be asked ({first_line(error)})")


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised for: as a cause, as an argument, or as urllib3's ``reason``."""
    links: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and link not in links:
            links.append(link)
            waiting += [getattr(link, "reason", None), link.__cause__, link.__context__, *link.args]
    return links


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    seconds = float(header) if header.strip().isdigit() else None
    if seconds is None:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = max(0.0, (date - datetime.now(UTC)).total_seconds())
    if seconds > LONGEST_WAIT_S:
        raise Refused(f"asks to come back in {seconds:.0f} s; run again then")
    return seconds


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validators(part: Path, url: str) -> dict[str, str]:
    """What the beginning of ``part`` came with, if it came from ``url``; elsewhere other validators hold."""
    try:
        content = json.loads(sidecar(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
    return content if sound and content.get("url") == url else {}


def _write_json(path: Path, content: dict[str, str]) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)


def on_disk(path: Path, action: Callable[[], _T]) -> _T:
    """The action's result; what the file system refuses becomes one line."""
    try:
        return action()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or first_line(error)
    return InputError(f"{path}: cannot be written ({reason}); make room, or choose another --root")
