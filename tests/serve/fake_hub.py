"""A hub on this machine: repositories in memory, and the calls of huggingface_hub that we make."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/?]+)")


class Hub:
    """Attributes: address; repositories: files by name, by branch, by USER/NAME; asked: files."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch, or of a commit."""
        for branch, files in self.repositories[repository].items():
            parts = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
            commit = hashlib.sha1(json.dumps(parts).encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        return None


@contextmanager
def running_hub() -> Iterator[Hub]:
    """It, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def refuse(self, code: str) -> None:
            self.answer(404, b"{}", X_Error_Code=code)

        def do_GET(self) -> None:
            found = _FILE.fullmatch(self.path.partition("?")[0])
            if found is None:
                self.refuse("EntryNotFound")
                return
            repository, revision, name = found.groups()
            hub.asked.append(name)
            if repository not in hub.repositories:
                self.refuse("RepoNotFound")
            elif (at := hub.find(repository, revision)) is None:
                self.refuse("RevisionNotFound")
            elif name not in at[1]:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=at[0])
            else:
                data = at[1][name]
                tag = f'"{hashlib.sha1(data).hexdigest()}"'
                self.answer(200, data, ETag=tag, X_Repo_Commit=at[0])

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/validate-yaml":
                self.answer(200, b'{"errors": [], "warnings": []}')
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, b'{"error": "Invalid username or password."}')
                return
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if asked.get("visibility") == "private" or asked.get("private"):
                    hub.private.add(name)
                is_new = name not in hub.repositories
                hub.repositories.setdefault(name, {"main": {}})
                url = json.dumps({"url": f"{hub.address}/{name}"}).encode()
                self.answer(200 if is_new else 409, url)
                return
            found = _API.fullmatch(self.path.partition("?")[0])
            assert found is not None, self.path
            self.change(*found.groups(), body)

        def change(self, repository: str, kind: str, revision: str, body: bytes) -> None:
            branches = hub.repositories[repository]
            if kind == "branch":
                branches.setdefault(revision, dict(branches["main"]))
                self.answer(200, b"{}")
            elif kind == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, json.dumps({"files": files}).encode())
            else:
                for line in body.splitlines():
                    record = json.loads(line)
                    if record["key"] == "file":
                        value = record["value"]
                        branches[revision][value["path"]] = base64.b64decode(value["content"])
                at = hub.find(repository, revision)
                assert at is not None
                made = {"commitUrl": f"{hub.address}/{repository}/commit/{at[0]}"}
                self.answer(200, json.dumps(made | {"commitOid": at[0]}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
