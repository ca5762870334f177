"""A stand-in for the Hugging Face hub: as much of it as a download of one public and one gated repository needs."""

import hashlib
import json
import time

from tests.support.http_stub import Stub

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(Stub):
    """Answers for every repository of `org` with the same files, also as a proxy to hub.example."""

    files: dict[str, bytes]
    requests: list[tuple[str, str | None]]
    closed: set[str]
    hiccups = 0  # questions that it does not answer yet
    down_until = 0.0  # monotonic

    def do_GET(self) -> None:
        path = self.path.removeprefix("http://hub.example").split("?")[0].replace("/api/datasets/", "/api/models/")
        self.requests.append((path, self.headers.get("Authorization")))
        if Hub.hiccups or time.monotonic() < Hub.down_until:
            Hub.hiccups -= bool(Hub.hiccups)
            self.reply(503, b"{}")
        elif path.startswith("/org/gated/resolve/") and self.headers.get("Authorization") != "Bearer secret":
            self.reply(401, b'{"error": "Access to org/gated is restricted"}', {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/"):
            parts = path.removeprefix("/api/models/").split("/")
            revision = parts[3] if len(parts) > 3 else "main"
            if parts[1] in self.closed:
                return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision not in {*COMMITS, *COMMITS.values()}:
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            commit = COMMITS.get(revision, revision)
            listed = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            gated = "manual" if parts[1] == "gated" else False
            info = {"id": "/".join(parts[:2]), "sha": commit, "siblings": listed, "gated": gated}
            tree = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": "0"} for f in listed]
            self.reply(200, json.dumps(tree if "tree" in parts else info).encode())
        elif "/resolve/" in path:
            revision, name = path.split("/resolve/")[1].split("/", 1)
            content = self.files[name]
            tag = hashlib.sha256(content).hexdigest()
            self.reply(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMITS.get(revision, revision)})
        else:
            self.reply(404, b"{}")

    do_HEAD = do_GET
