"""As much of W&B's server as a run, its files, its artifacts and its saved views need; it keeps what it is sent."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.http_stub import Stub, serving

ENTITY = "team"


class Kept:
    """What the server was sent."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.files: dict[str, bytes] = {}  # by path: RUN/NAME, artifact/ID/NAME
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self.bodies: list[bytes] = []  # of all requests


class Server(Stub):
    protocol_version = "HTTP/1.1"
    keep: Kept

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.keep.files[self.path.removeprefix("/storage/")] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path != "/graphql":
            if self.path.endswith("/file_stream"):
                self.keep_history(json.loads(body))
            return self.answer({"exitcode": None, "limits": {}})
        request = json.loads(body)
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        resolve = getattr(self, f"gql_{name[1]}" if name else "", None)
        if resolve is None:
            self.keep.unknown.append(request["query"])
            return self.answer({"data": {}})
        variables = request.get("variables") or {}
        self.answer({"data": resolve(variables.get("input") or variables)})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content
        self.keep.bodies.append(content)
        return content

    def answer(self, content: Any) -> None:
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def keep_history(self, stream: dict[str, Any]) -> None:
        run = self.path.split("/")[-2]
        lines = (stream.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
        self.keep.history[run] += [json.loads(line) for line in lines]
        for line in (stream.get("files") or {}).get("wandb-summary.json", {}).get("content", []):
            self.keep.runs.setdefault(run, {})["summary"] = json.loads(line)

    def upload(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/storage/{name}"

    def gql_Viewer(self, values: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "u", "entity": ENTITY, "username": "user", "email": "u@example.org", "flags": "{}"}
        return {"viewer": {**viewer, "teams": teams}}

    def gql_ServerFeaturesQuery(self, values: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def gql_UpsertBucket(self, values: dict[str, Any]) -> Any:
        run = self.keep.runs.setdefault(values["name"], {})
        run |= {key: value for key, value in values.items() if value is not None}
        project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": values["entity"] or ENTITY}}
        bucket = {"id": "r", "name": values["name"], "displayName": values["displayName"] or "", "description": ""}
        bucket |= {"config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def gql_CreateRunFiles(self, values: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": self.upload(f"{values['run']}/{name}")} for name in values["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def gql_ArtifactType(self, values: dict[str, Any]) -> Any:
        return {"project": None}

    def gql_CreateArtifact(self, values: dict[str, Any]) -> Any:
        artifact = f"A{len(self.keep.artifacts)}"
        self.keep.artifacts[artifact] = values
        sequence = {"id": "s", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": artifact, "state": "PENDING", "artifactSequence": sequence}}}

    def gql_CreateArtifactManifest(self, values: dict[str, Any]) -> Any:
        file = {"id": "f", "name": values["name"], "displayName": values["name"], "uploadHeaders": []}
        file["uploadUrl"] = self.upload(f"manifest/{values['artifactID']}")
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def gql_CreateArtifactFiles(self, values: dict[str, Any]) -> Any:
        edges = []
        for file in values["artifactFiles"]:
            artifact, name = file["artifactID"], file["name"]
            node = {"id": "f", "name": name, "displayName": name, "uploadHeaders": [], "uploadMultipartUrls": None}
            node |= {"uploadUrl": self.upload(f"artifact/{artifact}/{name}"), "storagePath": f"s/{name}"}
            edges.append({"node": {**node, "artifact": {"id": artifact}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def gql_CommitArtifact(self, values: dict[str, Any]) -> Any:
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": "d"}}}

    def gql_UpsertView2(self, values: dict[str, Any]) -> Any:
        view = values.get("id") or f"V{len(self.keep.views)}"
        self.keep.views[view] = values
        project = {"id": "p", "name": values["projectName"], "entityName": values["entityName"]}
        shown = {key: values.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        node = {"id": view, **shown, "project": project, "updatedAt": "2026-11-22T00:00:00Z"}
        return {"upsertView": {"view": node, "inserted": True}}

    def gql_ProjectInternalId(self, values: dict[str, Any]) -> Any:
        return {"project": {"id": "p", "internalId": "UHJvamVjdDox"}}

    def gql_GetProjects(self, values: dict[str, Any]) -> Any:
        names = {run["project"] for run in self.keep.runs.values()}
        project = {"id": "p", "entityName": ENTITY, "createdAt": "", "isBenchmark": False, "user": None}
        edges = [{"node": {**project, "name": name}, "cursor": ""} for name in sorted(names)]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    gql_GetDefaultEntity = gql_Viewer
    gql_upsertView = gql_UpsertView2


@contextmanager
def server() -> Iterator[tuple[str, Kept]]:
    """A server on the loopback, by its address, and what it keeps."""
    keep = Kept()
    handler = type("Handler", (Server,), {"keep": keep})
    with serving(handler) as address:
        yield address, keep
