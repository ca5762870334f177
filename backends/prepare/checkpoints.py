"""Converts a model's weights once per node. The folder's name is a digest of everything that determines its content."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backends.base import Progress, cli
from backends.launch import task
from backends.prepare import environments, programs
from backends.prepare.build_once import build_once
from sweep.base.exits import Failed
from sweep.base.whole_file import write_whole

CALIBRATION = Path(__file__).resolve().parents[2] / "sweep" / "inputs" / "data" / "prompts"
CHECKPOINT_FORMAT = 1  # part of every digest; raise it when equal inputs give different weights
NOTE = "conversion.json"
# Suffixes of the Hugging Face files that describe the tokenizer and the end tokens, copied into every conversion.
DESCRIPTION = (".json", ".txt", ".model", ".jinja")
PROGRESS = "progress: "  # prefix of an output line that is meant for the user


class ConversionFailed(Failed, ValueError):
    """A conversion failed. The one-line message names the conversion and the reason."""


def converted(
    model: Path,
    kind: str,
    parameters: Mapping[str, Any],
    make: Callable[[Path], None],
    cache_dir: Path,
    progress: Progress,
) -> Path:
    """Return the converted model's folder, filled by `make` on first use. Raises ConversionFailed or OSError."""
    if not (model / "config.json").is_file():
        raise ConversionFailed(f"{model} has no config.json: only a folder in Hugging Face layout can be converted")
    made_of = {"model": digest(model, cache_dir), "kind": kind, "parameters": dict(parameters)}
    content = {**made_of, "format": CHECKPOINT_FORMAT}
    key = _sha256(json.dumps(content, sort_keys=True).encode())[:16]
    folder = cache_dir.expanduser().absolute() / "converted" / f"{kind}-{key}"

    def convert(partial: Path) -> None:
        partial.mkdir()
        listed = ", ".join(f"{name} {value}" for name, value in parameters.items() if isinstance(value, str | int))
        progress(f"converting {model.name} to {kind}: {listed}")
        make(partial)
        description = {**content, **note(partial)}
        for path in model.iterdir():
            weights = path.name.endswith(".index.json")  # names the file that holds each tensor
            if path.suffix in DESCRIPTION and path.is_file() and not weights and not (partial / path.name).exists():
                shutil.copyfile(path, partial / path.name)
        (partial / NOTE).write_text(json.dumps(description, indent=1))

    return build_once(folder, convert, kind, progress)


def quantised(
    model: Path, checkpoint: str | None, group_size: int, python: str, cache_dir: Path, progress: Progress
) -> Path:
    """Return the model as a checkpoint of this format, made by `python`, or the model itself if already quantised."""
    if checkpoint is None or is_quantised(model):
        return model

    def quantise(folder: Path) -> None:
        arguments = {"model": model, "output": folder, "format": checkpoint, "group": group_size}
        run(python, "to_quantized", {**arguments, "calibration": CALIBRATION}, folder / "conversion.log", progress)

    made_by = versions(python, "gptqmodel") or "round to nearest"
    parameters = {"checkpoint": checkpoint, "group_size": group_size, "made by": made_by}
    if "gptqmodel" in made_by:
        parameters["calibration"] = digest(CALIBRATION, cache_dir)
    return converted(model, checkpoint, parameters, quantise, cache_dir, progress)


def obstacle(checkpoint: str | None, is_quantised: Callable[[], bool | None]) -> str | None:
    """Return why an engine in an image cannot get this checkpoint, or None (see `Backend.conversion_obstacle`)."""
    if checkpoint is None or is_quantised() is not False:
        return None
    return not_made(
        f"backend.checkpoint={checkpoint}", "the libraries that this needs", ", or a model that is already quantised"
    )


def not_made(setting: str, lacking: str, instead: str = "") -> str:
    """Return why the weights that a setting needs cannot be made for an engine in an image, with the remedy."""
    why = f"not made for an engine in an image, since conversions run outside the image, without {lacking}"
    return f"{setting}: {why}; choose an environment that is not an image{instead}"


def is_quantised(model: Path) -> bool:
    """Return whether a model's stored weights are already quantised."""
    return "quantization_config" in json.loads((model / "config.json").read_text())


def note(folder: Path) -> dict[str, Any]:
    """Return the record of how this folder was made; empty if it is not a conversion."""
    path = folder / NOTE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def method(folder: Path) -> dict[str, str]:
    """Return the quantisation method of sweep's checkpoint, as a fact; empty if it is not recorded."""
    made = note(folder).get("method")
    return {"quantization_method": made} if made else {}


def run(
    python: str, program: str, arguments: Mapping[str, Any], log: Path, progress: Progress, path: tuple[Path, ...] = ()
) -> None:
    """Run conversions/<program>.py in an environment, which also imports from `path`. Raises ConversionFailed."""
    root = Path(__file__).resolve().parents[2]
    command = [python, "-m", f"backends.prepare.conversions.{program}", *cli(arguments)]
    execute(command, program, log, progress, {"PYTHONPATH": os.pathsep.join(map(str, [root, *path]))})


def execute(
    command: list[str], title: str, log: Path, progress: Progress, environ: Mapping[str, str] | None = None
) -> None:
    """Run a conversion at low priority and log its output. Raises ConversionFailed with the last line of the output."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Output is unbuffered, so that progress is reported at once and the error is the last line.
    settings = task.clean_environment(PYTHONUNBUFFERED="1", **offline, **(environ or {}))

    def report(line: str) -> None:
        if line.startswith(PROGRESS):
            progress(line.removeprefix(PROGRESS).strip())

    try:
        programs.run(["nice", "-n", "10", *command], settings, log, report)
    except programs.ToolFailed as failure:
        message = failure.last[:500]
        problem = f"{title} failed (exit status {failure.status}): {message}; log: {log}"
        raise ConversionFailed(problem, programs.printed(message)) from None


def versions(python: str, *distributions: str) -> str:
    """Return the exact versions of these distributions in an environment, in one line; missing ones are skipped."""
    installed = environments.installed(python)
    return " ".join(f"{name} {installed[name]}" for name in distributions if name in installed)


def digest(folder: Path, cache_dir: Path) -> str:
    """Return 16 hex digits for the names and contents of a folder's files. Unchanged files are read only once."""
    cache = cache_dir.expanduser().absolute() / "digests" / f"{_sha256(str(folder.resolve()).encode())[:16]}.json"
    cached: dict[str, list[Any]] = json.loads(cache.read_text()) if cache.is_file() else {}
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    fresh = {name: _entry(path, cached.get(name)) for name, path in files.items() if not name.startswith(".")}
    if fresh != cached:
        with contextlib.suppress(OSError):  # if the cache is not writable, the files are read again
            write_whole(cache, json.dumps(fresh))
    return _sha256(json.dumps({name: entry[2] for name, entry in fresh.items()}, sort_keys=True).encode())[:16]


def file_digest(path: Path) -> str:
    """Return a file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: Path, cached: list[Any] | None) -> list[Any]:
    """Return a file's [size, time of change in ns, SHA-256]."""
    target = path.resolve()
    facts = target.stat()
    if cached and cached[:2] == [facts.st_size, facts.st_mtime_ns]:
        return cached
    is_blob = re.fullmatch("[0-9a-f]{64}", target.name)  # the Hugging Face cache names large files by SHA-256
    return [facts.st_size, facts.st_mtime_ns, target.name if is_blob else file_digest(target)]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
