"""A model of the Hugging Face hub, fetched by the hub's own package from a server that speaks its protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fanet_lightning.models.pretrained import SHIPPED

NAME, COMMIT = "somebody/fanet-tiny", "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from fanet_lightning import FaceDetector; from fanet_lightning.cli import main as cli

def main(words):
    detector = FaceDetector.from_pretrained(words[0])
    print(detector.detect(words[1], threshold=0.5).count, detector.source)

cli.run(main)
"""


class Hub(ThreadingHTTPServer):
    """Serves a folder as the model :data:`NAME`; keeps what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        oids = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
        start = f"/{NAME}/resolve/{COMMIT}/"
        if path == f"/api/models/{NAME}/revision/main":
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"id": NAME, "sha": COMMIT, "siblings": siblings}, with_body)
        elif path == f"/api/models/{NAME}/tree/{COMMIT}":
            tree = [{"type": "file", "path": x, "size": len(files[x]), "oid": oids[x]} for x in files]
            self._send_json(tree, with_body)
        elif path.startswith(start) and path.removeprefix(start) in files:
            name = path.removeprefix(start)
            self._send(200, files[name], with_body, {"X-Repo-Commit": COMMIT, "ETag": f'"{oids[name]}"'})
        else:
            body = b'{"error":"Repository not found"}'
            self._send(
                404, body, with_body, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )

    def _send_json(self, content: Any, with_body: bool) -> None:
        self._send(200, json.dumps(content).encode(), with_body, {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "training_images.txt"):
        (folder / name).write_bytes((SHIPPED / "fanet_light" / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that no one asked for")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    from matplotlib.cbook import get_sample_data

    image = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def detect(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, name, image]
        return subprocess.run(
            command, env=environment | more, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    done = detect(NAME)
    assert done.returncode == 0, (done.stderr, hub.asked)
    count, source = done.stdout.split()
    assert count == "1" and str(tmp_path / "cache") in source and source.endswith(COMMIT)
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "training_images.txt"}
    # From now on it is there, without the server too.
    hub.asked.clear()
    again = detect(NAME, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == done.stdout and hub.asked == []
    for how in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        unknown = detect("somebody/else", **how)
        assert unknown.returncode == 2 and len(unknown.stderr.splitlines()) == 1, unknown.stderr
        assert "somebody/else" in unknown.stderr and "cannot be fetched" in unknown.stderr
