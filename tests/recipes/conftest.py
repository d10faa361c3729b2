"""A Hub of one process: the calls that `create_repo` and `upload_folder` make, on 127.0.0.1."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Hub:
    """What was created and uploaded, and every call that was made."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.calls: list[str] = []
        self.unknown: list[str] = []
        self.tokens: set[str | None] = set()
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Keep the tests quiet."""

    def _answer(self, data: Any, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body, path = self._body(), self.path.split("?")[0]
        self.hub.calls.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            request = json.loads(body)
            owner = request.get("organization") or "tester"
            repo = f"{owner}/{request['name']}"
            self.hub.repos.setdefault(repo, {})
            self._answer({"url": f"{self.hub.url}/{repo}", "name": repo})
        elif path == "/api/whoami-v2":
            self._answer({"name": "tester", "type": "user", "orgs": [], "auth": {}})
        elif path == "/api/validate-yaml":
            self._answer({"warnings": [], "errors": []})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), body)
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo = "/".join(parts[2:4])
            self._answer({"id": repo, "modelId": repo, "sha": "0" * 40, "siblings": [], "tags": [], "private": False})
        else:
            self.hub.unknown.append(f"{self.command} {path}")
            self._answer({"error": f"unknown call {path}"}, 404)

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.repos[repo][entry["value"]["path"]] = content
        commit = "1" * 40
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self._answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub that answers while the test runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
