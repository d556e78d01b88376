"""A server that speaks as much of Hugging Face's protocol as creating, uploading and downloading take."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class HubHandler(BaseHTTPRequestHandler):
    """Keeps repositories as folders below `root`."""

    root: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            (self.root / name).mkdir(parents=True, exist_ok=True)
            self._answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self._answer({"files": [self._as_regular_file(file["path"]) for file in files]})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._answer({})  # such as /api/validate-yaml

    def _as_regular_file(self, path: str) -> dict[str, object]:
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False}

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                file = self.root / name / entry["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(entry["value"]["content"]))
        self._answer(
            {"commitOid": COMMIT, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"}
        )

    def do_HEAD(self) -> None:
        self.do_GET(with_body=False)

    def do_GET(self, with_body: bool = True) -> None:
        path = self.path.partition("?")[0]
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        file = self.root / name / rest.partition("/")[2]
        if path.startswith("/api/models/"):
            self._answer({"id": path.removeprefix("/api/models/").partition("/revision/")[0], "sha": COMMIT})
        elif rest and file.is_file():
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if with_body:
                self.wfile.write(data)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def local_hub(root: Path) -> Iterator[str]:
    """The address of a hub whose repositories are folders below `root`."""
    handler = type("Handler", (HubHandler,), {"root": root})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
