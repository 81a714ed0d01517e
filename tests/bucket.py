"""A bucket on this machine: what `gs://` paths reach, for Python (fsspec) and for TensorStore (HTTP), in one dict."""

import http.server
import io
import json
import os
import sys
import threading
import types
import urllib.parse
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

OBJECTS: dict[str, bytes] = {}
"""`BUCKET/KEY` -> contents. There are no folders: a folder is there as long as an object's key begins with its name."""
_GENERATIONS: dict[str, int] = {}
_LOCK = threading.Lock()


def put(name: str, data: bytes) -> int:
    """Writes an object, whole, as stores do; gives its generation."""
    with _LOCK:
        OBJECTS[name] = data
        _GENERATIONS[name] = _GENERATIONS.get(name, 0) + 1
        return _GENERATIONS[name]


class _Upload(io.BytesIO):
    """An object that is written when it is closed."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def close(self) -> None:
        if not self.closed:
            put(self._name, self.getvalue())
        super().close()


class Files(AbstractFileSystem):
    """The bucket as fsspec sees one."""

    protocol: ClassVar[Any] = ("gcs", "gs")
    cachable = False

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path in OBJECTS:
            return {"name": path, "size": len(OBJECTS[path]), "type": "file"}
        if "/" not in path or any(name.startswith(path + "/") for name in OBJECTS):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        inside = {path + "/" + name[len(path) + 1 :].split("/")[0] for name in OBJECTS if name.startswith(path + "/")}
        found = sorted(inside) or [self.info(path)["name"]]
        return [self.info(name) for name in found] if detail else found

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            self.info(path)
            return io.BytesIO(OBJECTS[path])
        assert mode == "wb", f"object stores know no mode {mode}"
        return _Upload(path)

    def cp_file(self, path1, path2, **_):
        put(self._strip_protocol(path2), self.open(path1).read())

    def rm_file(self, path):
        if OBJECTS.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)

    def _rm(self, path):
        if self._strip_protocol(path) in OBJECTS:
            self.rm_file(path)

    def mkdir(self, path, create_parents=True, **_):
        """Nothing: there are no folders."""

    def makedirs(self, path, exist_ok=False):
        """Nothing."""


class _Server(http.server.BaseHTTPRequestHandler):
    """What TensorStore asks of Google's JSON interface."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        bucket, key, query = self._asked()
        if not key:
            first, last = f"{bucket}/{query.get('startOffset', '')}", f"{bucket}/{query.get('endOffset', chr(1114111))}"
            names = sorted(name for name in OBJECTS if name.startswith(f"{bucket}/") and first <= name < last)
            return self._json({"items": [self._metadata(name) for name in names]})
        name = f"{bucket}/{key}"
        if name not in OBJECTS:
            return self._answer(404)
        if query.get("ifGenerationNotMatch") == str(_GENERATIONS[name]):
            return self._answer(304)
        if query.get("ifGenerationMatch", str(_GENERATIONS[name])) != str(_GENERATIONS[name]):
            return self._answer(412)
        if query.get("alt") != "media":
            return self._json(self._metadata(name))
        data, asked = OBJECTS[name], self.headers.get("Range")
        headers = {"x-goog-generation": str(_GENERATIONS[name])}
        if not asked:
            return self._answer(200, data, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._answer(206, data[start:stop], headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket, _, query = self._asked()
        name = f"{bucket}/{query['name']}"
        now = _GENERATIONS[name] if name in OBJECTS else 0
        if query.get("ifGenerationMatch", str(now)) != str(now):
            return self._answer(412)
        put(name, body)
        return self._json(self._metadata(name))

    def do_DELETE(self):
        bucket, key, _ = self._asked()
        return self._answer(204 if OBJECTS.pop(f"{bucket}/{key}", None) is not None else 404)

    def _asked(self):
        path, _, query = self.path.partition("?")
        parts = path.removeprefix("/upload").removeprefix("/storage/v1/b/").split("/o", 1)
        key = urllib.parse.unquote(parts[1].lstrip("/")) if len(parts) > 1 else ""
        return parts[0], key, dict(urllib.parse.parse_qsl(query))

    def _metadata(self, name):
        bucket, _, key = name.partition("/")
        when = "2026-01-01T00:00:00Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": key,
            "generation": str(_GENERATIONS[name]),
            "metageneration": "1",
            "size": str(len(OBJECTS[name])),
            "timeCreated": when,
            "updated": when,
        }

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing."""


def serve() -> None:
    """From now on `gs://` paths of this process lie in `OBJECTS`; to be called before any is opened."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    storage = types.ModuleType("google.cloud.storage")  # Orbax asks it whether the bucket knows folders
    flat = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    storage.Client = lambda *_, **__: types.SimpleNamespace(  # type: ignore[attr-defined]
        bucket=lambda *_: types.SimpleNamespace(reload=lambda: None, **vars(flat)), get_bucket=lambda *_: flat
    )
    import google.cloud

    google.cloud.storage = sys.modules["google.cloud.storage"] = storage  # type: ignore[attr-defined]
    for name in Files.protocol:
        fsspec.register_implementation(name, Files, clobber=True)
