"""A web server for the pages of this package, for this machine alone."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from gpt2.system.errors import UserError

ADDRESS = "127.0.0.1"  # other machines can't connect
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # Windows' registry may say others
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
PAGES = Path(__file__).resolve().parent / "pages"

# the parameters of a request, after its "?" → what is sent: bytes, or anything that JSON can hold
Answer = Callable[[dict[str, str]], Any]


def serve(page: str, answers: Mapping[str, Answer], port: int) -> None:
    """Serve the files of `pages/` and `answers` by path until Ctrl-C, and print the address of `page`.

    Port 0 takes a free one. Raises UserError where the port is in use.
    """
    try:
        server = make_server(answers, port, page)
    except OSError as error:
        raise UserError(f"port {port} can't be used: {error.strerror}; give another one with --port") from None
    with server:
        print(f"http://{ADDRESS}:{server.server_port}/{page} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def make_server(answers: Mapping[str, Answer], port: int, page: str = "") -> ThreadingHTTPServer:
    """A server of the files of `pages/` and of `answers`, bound to its port, where `/` is `page`.

    Raises OSError if the port is taken.
    """
    return ThreadingHTTPServer((ADDRESS, port), partial(_Handler, answers, page))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, answers: Mapping[str, Answer], page: str, *arguments: Any) -> None:
        self.answers, self.page = answers, page
        super().__init__(*arguments)

    def handle(self) -> None:
        """Answer one connection until the browser closes it."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Send an answer or a page: 403 for another host's name, 404 for what is not there."""
        # DNS rebinding: the domain of another site may resolve to 127.0.0.1, and the Host header then names that domain
        if self.headers.get("Host", "").lower().rsplit(":", 1)[0] not in (ADDRESS, "localhost"):
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"only http://127.0.0.1")
        path, _, query = self.path.partition("?")
        path = unquote(path).lstrip("/") or self.page
        if path in self.answers:
            try:
                found = self.answers[path](dict(parse_qsl(query)))
            except (UserError, OSError) as error:
                return self._send(HTTPStatus.NOT_FOUND, "text/plain", str(error).encode(errors="replace"))
            if isinstance(found, bytes):
                return self._send(HTTPStatus.OK, "application/octet-stream", found)
            return self._send(HTTPStatus.OK, "application/json", json.dumps(found).encode())
        file = PAGES / path
        if path not in os.listdir(PAGES):  # there are no folders in it, so a path leads nowhere else
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page")
        return self._send(HTTPStatus.OK, KINDS.get(file.suffix, "application/octet-stream"), file.read_bytes())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        text = kind.startswith("text/") or kind == "application/json"
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing per request."""
