"""A file server on this machine that misbehaves as it is told to, and archives as small as they may be."""

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Answer:
    """One answer to a request: ``content``, the whole file; a range of it where one is asked for.

    ``breaks_after``: the connection closes after so many bytes of the body. ``stalls_after``: nothing more comes, until
    the server's ``stop`` is set. ``says_bytes``: the Content-Length instead of the true one. ``ranges=False``: the
    whole file whatever is asked for. ``bare``: no Content-Length, the end of the connection ends the file.
    """

    content: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks_after: int | None = None
    stalls_after: int | None = None
    says_bytes: int | None = None
    ranges: bool = True
    bare: bool = False


class Asked(NamedTuple):
    """A request as it came in."""

    path: str
    range: str | None


class FileServer:
    """``answers[path]`` are given one after the other, the last one again and again; unknown paths are 404."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[Asked] = []
        self.stop = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, *arguments: Any) -> None:
                """Nothing on stderr."""

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def serve(self, path: str, *answers: Answer) -> str:
        """Give these answers at ``path`` from now on; returns its address."""
        self.answers[path] = list(answers)
        return self.url + path

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = Asked(request.path, request.headers["Range"])
        self.asked.append(asked)
        waiting = self.answers.get(request.path, [Answer(status=404)])
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        body, status, headers = answer.content, answer.status, dict(answer.headers)
        if asked.range and answer.ranges and status == 200:
            start = int(asked.range.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                status, body = 416, b""
            else:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
        if not answer.bare:
            headers["Content-Length"] = str(len(body) if answer.says_bytes is None else answer.says_bytes)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if answer.stalls_after is not None:
            request.wfile.write(body[: answer.stalls_after])
            self.stop.wait(60)
        else:
            request.wfile.write(body if answer.breaks_after is None else body[: answer.breaks_after])
        request.close_connection = True


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server._http.shutdown()
        server._http.server_close()
        thread.join()


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these files, in this order."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()
