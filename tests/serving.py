"""A stub of an OpenAI-compatible endpoint on this machine, for the tests of all that asks one."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-do-not-tell-anybody"


class Stub(ABC):
    """It answers POST with `answer(path, body)`, a JSON value or bytes, and GET models with `models`.

    `failures` are statuses and headers that it answers with first, and then repeats the key.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.models: list[str] | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if stub.models is None:
                    self._send(404, {}, b"no")
                else:
                    self._send(200, {}, json.dumps({"data": [{"id": name} for name in stub.models]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append(body)
                stub.paths.append(self.path)
                stub.headers.append(dict(self.headers))
                if stub.failures:
                    status, headers = stub.failures.pop(0)
                    self._send(status, headers, f"no, {self.headers.get('Authorization')}".encode())
                    return
                answer = stub.answer(self.path, body)
                self._send(200, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64  # of those that ask at once; who finds no place waits for a second

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    @abstractmethod
    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """A JSON value or bytes, for what was posted to a path."""


@contextmanager
def answering(server: ThreadingHTTPServer) -> Iterator[None]:
    """Within it the server answers, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def served(stub: Stub) -> Iterator[Stub]:
    with answering(stub.server):
        yield stub
