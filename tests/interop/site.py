"""A local server that can resume, cut off, lie and refuse."""

import dataclasses
import http.server
import threading

BODY = bytes(range(256)) * 40


@dataclasses.dataclass
class Page:
    body: bytes = BODY
    status: int = 200
    kind: str = "application/octet-stream"
    version: str | None = '"1"'
    ranges: bool = True
    cut: int | None = None  # bytes after which the connection is closed
    stall: bool = False
    location: str | None = None
    extent: str | None = None  # the Content-Range of a part that nobody asked for


class Site(http.server.ThreadingHTTPServer):
    """Pages by path; `asked` lists paths and the ranges that were asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.logins: list[str | None] = []
        self.over = threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        self.server.logins.append(self.headers.get("Authorization"))
        page = self.server.pages.get(self.path, Page(b"", 404))
        start = 0
        if wanted and page.ranges and self.headers.get("If-Range") == page.version:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(page.body):
            self.send_response(416)
        else:
            self.send_response(206 if start else page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        if page.extent:
            self.send_header("Content-Range", page.extent)
        if page.version:
            self.send_header("ETag", page.version)
        if page.location:
            self.send_header("Location", page.location)
        self.end_headers()
        self.wfile.write(page.body[start : page.cut])
        if page.stall:
            self.wfile.flush()
            self.server.over.wait()

    def log_message(self, *_):
        pass
