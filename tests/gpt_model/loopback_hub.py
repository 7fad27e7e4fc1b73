"""A hub on this machine: what `huggingface_hub` asks of huggingface.co, answered from memory, with its ways to fail."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Repository:
    """One model: its files at one commit, and what goes wrong with it."""

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    listed_only: set[str] = field(default_factory=set)
    """Files that are in the list and nowhere else."""
    announced: dict[str, str] = field(default_factory=dict)
    """Checksums that are not the true ones."""
    breaks: list[int | None] = field(default_factory=list)
    """After how many bytes each of the next downloads of a large file breaks off; None lets it pass."""

    def checksum(self, name):
        if name in self.announced:
            return self.announced[name]
        data = self.files[name]
        if is_large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def listing(self):
        """What the tree of the commit says of each file."""
        return [self.entry(name) for name in self.files]

    def entry(self, name):
        size, checksum = len(self.files[name]), self.checksum(name)
        if not is_large(name):
            return {"type": "file", "path": name, "size": size, "oid": checksum}
        lfs = {"oid": checksum, "size": size, "pointerSize": 134}
        return {"type": "file", "path": name, "size": size, "oid": "0" * 40, "lfs": lfs}


def is_large(name):
    """Whether a file is kept outside of git, behind a redirect and under its SHA-256."""
    return name.endswith((".safetensors", ".bin"))


class LoopbackHub(ThreadingHTTPServer):
    """Serves repositories; `requests` has what was asked: method, path, Range."""

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.requests = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self, part):
        """The Range of each download whose path has `part` in it."""
        return [asked for method, path, asked in self.requests if method == "GET" and part in path]


class Handler(BaseHTTPRequestHandler):
    server: LoopbackHub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        path = urlsplit(self.path).path.strip("/").split("/")
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        kind = path.pop(0) if path[0] == "cdn" else "api" if path[:2] == ["api", "models"] else "resolve"
        path = path[2:] if kind == "api" else path
        repository = self.server.repositories.get("/".join(path[:2]))
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        action, revision, name = path[2], path[3], "/".join(path[4:])
        if revision not in ("main", repository.commit):
            return self.refuse(404, "RevisionNotFound")
        if kind == "api":
            info = {"id": "/".join(path[:2]), "sha": repository.commit, "siblings": []}
            return self.send(200, json.dumps(repository.listing() if action == "tree" else info).encode())
        if repository.gated:
            return self.refuse(401, "GatedRepo")
        if name not in repository.files or name in repository.listed_only:
            return self.refuse(404, "EntryNotFound")
        data, headers = repository.files[name], {"X-Repo-Commit": repository.commit}
        if kind == "cdn":
            return self.send_large(repository, data)
        if is_large(name):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{repository.checksum(name)}"'}
            return self.send(302, b"", **headers, Location=f"http://localhost:{self.server.server_port}/cdn{self.path}")
        return self.send(200, data, **headers, ETag=f'"{repository.checksum(name)}"')

    def refuse(self, status, code):
        self.send(status, b"{}", **{"X-Error-Code": code})

    def send_large(self, repository, data):
        """A file, or what is left of it from the first byte that is asked for; it may break off."""
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        stop = repository.breaks.pop(0) if repository.breaks and self.command == "GET" else None
        self.send(206 if start else 200, data[start:], stop, **headers)

    def send(self, status, body, stop=None, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        self.close_connection = True
