"""A stand-in for a package index: the wheels of a folder, behind a server that fails as often as it is told to."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.http_stub import Stub, serving


def make_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """Write the smallest wheel that installs: one module and its metadata."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


class Index:
    """PEP 503's simple index of the wheels in `folder`; the next `failures` questions get status 503."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failures, self.url = folder, 0, ""


class _Handler(Stub):
    index: Index

    def do_GET(self) -> None:
        name = self.path.strip("/").split("/")[-1]
        if self.index.failures > 0:
            self.index.failures -= 1
            self.reply(503)
        elif name.endswith(".whl"):
            self.reply(200, (self.index.folder / name).read_bytes())
        else:
            wheels = [path.name for path in self.index.folder.glob("*.whl") if path.name.split("-")[0] == name]
            links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in wheels)
            self.reply(200 if wheels else 404, links.encode(), {"Content-Type": "text/html"})

    do_HEAD = do_GET


@contextmanager
def serving_wheels(folder: Path) -> Iterator[Index]:
    index = Index(folder)
    with serving(type("Handler", (_Handler,), {"index": index})) as address:
        index.url = f"{address}/simple"
        yield index
