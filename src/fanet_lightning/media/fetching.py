"""One image over HTTP into memory: a few megabytes in bounded time, or a line that says why not."""

import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.media.inputs import without_passwords

if TYPE_CHECKING:
    import requests

MOST_REDIRECTS = 5
_CONNECT_SECONDS, _SILENT_SECONDS = 10.0, 20.0
_CHUNK_BYTES = 1 << 16


def fetch_bytes(url: str, max_bytes: int, seconds: float, stop: threading.Event | None = None) -> bytes:
    """What lies at an address.

    Args:
        url: ``http://`` or ``https://``.
        max_bytes: more are not taken, whether they are announced or just keep coming.
        seconds: for everything, from the first redirect to the last byte.
        stop: once it is set, the next piece is the last.

    Raises:
        InputError: no answer, an error page, HTML in place of an image, too many bytes or redirects, or too slow.
    """
    import http.client

    import requests
    import urllib3.exceptions

    # What reading the raw body raises beside requests' own.
    broken = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
    end = time.monotonic() + seconds
    shown = without_passwords(url)
    with requests.Session() as session:
        session.max_redirects = MOST_REDIRECTS
        try:
            timeout = (min(_CONNECT_SECONDS, seconds), min(_SILENT_SECONDS, seconds))
            headers = {"Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", "User-Agent": "fanet-lightning"}
            with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                _check_answer(response, shown, max_bytes)
                return _received(response, shown, max_bytes, end, seconds, stop)
        except broken as error:
            raise InputError(f"{shown} {_reason(error)}; look at the address and the network") from error


def _check_answer(response: "requests.Response", url: str, max_bytes: int) -> None:
    status = response.status_code
    if status != HTTPStatus.OK:
        try:
            text = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            text = str(status)
        raise InputError(f"{url} answers {text}; look at the address")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise InputError(f"{url} is an HTML page, not an image; give the address of the image itself")
    announced = response.headers.get("Content-Length", "")
    if announced.strip().isdecimal() and int(announced) > max_bytes:
        megabytes = f"{int(announced) / 1e6:,.0f}"
        raise InputError(f"{url} has {megabytes} MB, more than max_download_mb={max_bytes / 1e6:g}; raise it")


def _received(
    response: "requests.Response", url: str, max_bytes: int, end: float, seconds: float, stop: threading.Event | None
) -> bytes:
    content = bytearray()
    # A read of many bytes waits for all of them, and a server that drips would hold it beyond every deadline.
    raw: Any = response.raw
    piece_of = getattr(raw, "read1", None) or (lambda amount: raw.read(min(amount, 256)))
    while piece := piece_of(_CHUNK_BYTES):
        content += piece
        if len(content) > max_bytes:
            raise InputError(f"{url} has more than max_download_mb={max_bytes / 1e6:g}; raise it")
        if time.monotonic() > end:
            raise InputError(f"{url} is not here after download_seconds={seconds:g}; raise it")
        if stop is not None and stop.is_set():
            raise InputError(f"{url} was given up")
    announced = response.headers.get("Content-Length", "")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    if announced.strip().isdecimal() and not encoded and len(content) < int(announced):
        raise InputError(f"{url} breaks off after {len(content):,} of {int(announced):,} bytes; try again")
    if content[:512].lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{url} is an HTML page, not an image; give the address of the image itself")
    return bytes(content)


def _reason(error: BaseException) -> str:
    import requests

    text = repr(error)
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return f"redirects more than {MOST_REDIRECTS} times"
    if isinstance(error, requests.exceptions.SSLError):
        return "has a certificate that is not trusted"
    if "timed out" in text or isinstance(error, requests.exceptions.Timeout):
        return "does not answer in time"
    if "NameResolution" in text or "Name or service" in text or "getaddrinfo" in text:
        return "cannot be reached: its name is not resolved"
    if "refused" in text:
        return "cannot be reached: the connection is refused"
    if "IncompleteRead" in text or "reset" in text or "aborted" in text or "RemoteDisconnected" in text:
        return "breaks off"
    return f"cannot be fetched ({first_line(error)})"
