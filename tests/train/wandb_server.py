"""Stand-ins for W&B's server on this machine: one that takes a run, and several that do not."""

import contextlib
import http.server
import json
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def no_account() -> Iterator[None]:
    """No key of the person who runs the tests, and no server of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT", "WANDB_RUN_GROUP"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("NETRC", os.devnull)
        yield


class FakeWandb(http.server.BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs; keeps what it is sent in ``server.queries`` and ``server.rows``."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data: dict[str, Any] = {}
        if self.path == "/graphql":
            query = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            self.server.queries.append((name and name[1], query.get("variables") or {}))
            project = {"id": "p", "name": "tests", "entity": {"id": "e", "name": "me"}}
            run = {"id": "r", "name": self.server.queries[-1][1].get("name"), "displayName": "c", "project": project}
            data = {
                "RunResumeStatus": {"model": {**project, "bucket": None}},
                "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": True}},
                "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
            }.get(self.server.queries[-1][0], {})
        elif self.path.endswith("file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"content": []})
            self.server.rows += [json.loads(line) for line in history["content"]]
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def useless_server(answer: str) -> Iterator[str]:
    """A server that says nothing (``silent``), or none at all (``closed``)."""
    if answer == "closed":
        yield "http://127.0.0.1:9"
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
