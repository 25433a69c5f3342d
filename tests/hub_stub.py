"""A stub of the Hugging Face hub on this machine: repositories that are folders, and the ways in which a hub fails.

Leans on huggingface_hub 2.4: what it asks for, and the headers that it reads from an answer.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from serving import answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """Repositories by name, each a folder, and what goes wrong with them; `asked` holds every request."""

    def __init__(self, **repositories: Path) -> None:
        self.repositories = {name.replace("__", "/"): folder for name, folder in repositories.items()}
        self.asked: list[str] = []
        self.status = 0  # with which every request is answered, where it is not 0
        self.file_status = 0  # the same for files alone
        self.error_code = ""  # such as GatedRepo, beside the status
        self.drops: dict[str, int] = {}  # file -> how many times its download breaks off in the middle
        self.hangs: dict[str, int] = {}  # file -> how many times its download stops in the middle, and stays open
        self.is_closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        file = FILE.fullmatch(path)
        status = self.status or (self.file_status if file else 0)
        if status:
            self._refuse(request, status, self.error_code)
        elif file:
            self._send_file(request, self.repositories.get(file[2]), file[4])
        elif api := API.fullmatch(path):
            self._send_facts(request, self.repositories.get(api[2]), api, body)
        else:
            self._refuse(request, 404)

    # ------------------------------------------------------------------------------------------------------- answers

    def _send_facts(self, request: Any, folder: Path | None, api: re.Match[str], body: bytes) -> None:
        """What the hub knows of a repository: its files, in one of three forms."""
        if folder is None:
            self._refuse(request, 401, "RepoNotFound")
            return
        if api[3] == "tree":
            place = folder / (api[5] or "")
            if not place.is_dir():
                self._refuse(request, 404, "EntryNotFound")
                return
            is_recursive = "recursive=true" in request.path.lower()
            listed = sorted(place.rglob("*") if is_recursive else place.glob("*"))
            self._send_json(request, [_entry(folder, path) for path in listed])
        elif api[3] == "paths-info":
            wanted = json.loads(body)["paths"]
            self._send_json(request, [_entry(folder, folder / name) for name in wanted if (folder / name).exists()])
        else:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            facts = {"id": api[2], "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": siblings}
            self._send_json(request, facts)

    def _send_file(self, request: Any, folder: Path | None, name: str) -> None:
        if folder is None:
            self._refuse(request, 401, "RepoNotFound")
            return
        if not (folder / name).is_file():
            self._refuse(request, 404, "EntryNotFound")
            return

        data = (folder / name).read_bytes()
        start = 0
        if asked_range := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
            start = int(asked_range[1])
            end = int(asked_range[2] or len(data) - 1) + 1
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            part = data[start:end]
        else:
            request.send_response(200)
            part = data
        request.send_header("Content-Length", str(len(part)))
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.end_headers()
        if request.command == "HEAD":
            return

        if self._counted_down(self.drops, name):
            request.wfile.write(part[: len(part) // 2])
            request.close_connection = True
            request.connection.shutdown(2)
        elif self._counted_down(self.hangs, name):
            request.wfile.write(part[: len(part) // 2])
            request.wfile.flush()
            self.is_closing.wait()
            request.close_connection = True
        else:
            request.wfile.write(part)

    @staticmethod
    def _counted_down(times: dict[str, int], name: str) -> bool:
        if not times.get(name):
            return False
        times[name] -= 1
        return True

    def _send_json(self, request: Any, value: Any) -> None:
        data = json.dumps(value).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    def _refuse(self, request: Any, status: int, code: str = "") -> None:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", f"the hub says {status}")
        request.send_header("Content-Length", "0")
        request.end_headers()


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
    data = path.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    with answering(hub.server):
        try:
            yield hub
        finally:
            hub.is_closing.set()
