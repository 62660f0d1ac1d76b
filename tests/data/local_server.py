"""A web server on 127.0.0.1 that knows ``Range``, can drop a connection midway, and keeps a log of requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class LocalServer:
    """Serves `files` by path.

    Attributes:
        files: content by path without the leading slash; any other path is a 404.
        drop_after: bytes after which the next answer for a path breaks off, once.
        html: paths that are served as an HTML page, which knows no ``Range``.
        log: (path, Range header or None) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    drop_after: dict[str, int] = field(default_factory=dict)
    html: set[str] = field(default_factory=set)
    log: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/{path}"

    def __enter__(self) -> LocalServer:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def _handler(server: LocalServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, asked = self.path.strip("/"), self.headers.get("Range")
            server.log.append((path, asked))
            html, content = path in server.html, server.files.get(path)
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and not html else 0
            if content is None:
                self.send_error(404)
                return
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/octet-stream")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[start : server.drop_after.pop(path, len(content))])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
