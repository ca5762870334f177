"""A capsule: a row's complete record in ten lines of text, which can be mailed and run again anywhere.

Each line is a key and JSON. A capsule contains the compressed lockfile of the engine's environment, so it needs no
folder.
"""

import base64
import json
import re
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from analysis.compare.reproduction import Noise
from backends.prepare.locks import LARGEST_LOCK, foreign_line
from sweep.base.config import ConfigError, did_you_mean, first_line, shortened
from sweep.rerun.circumstances import Circumstances


@dataclass(frozen=True)
class Capsule:
    """One row: its configuration, the circumstances of its measurement, and its result. Each field is one line."""

    capsule: str  # the source, RUN#TRIAL
    trial: dict[str, Any]  # trial_id, experiment, label, replicate, seed, started_at
    config: dict[str, Any]  # resolved
    coordinates: dict[str, Any]  # values on the axes of its experiment
    settings: dict[str, Any]  # settings of its run that differ from the defaults
    digests: dict[str, str]  # digests of the files that its configuration refers to
    locks: dict[str, str]  # the lock of its environment, compressed, by file name
    circumstances: Circumstances
    figures: dict[str, float]
    noise: dict[str, Noise]  # variation of these quantities between launches, if the run shows it

    def text(self) -> str:
        """Return the capsule's ten lines."""
        return "".join(f"{key}: {json.dumps(content)}\n" for key, content in asdict(self).items())

    def lock_texts(self) -> dict[str, str]:
        """Return the lockfiles' content by file name. Raises ConfigError if they contain anything but pins."""
        return {name: _unpacked_lock(name, content) for name, content in self.locks.items()}


def parse_capsules(text: str) -> list[Capsule]:
    """Read capsules separated by empty lines. Raises ConfigError for a text without a capsule, or a damaged one."""
    parts = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    if not parts:
        raise ConfigError("capsule: the text is empty; expected the lines that sweep rerun RUN#TRIAL --capsule prints")
    return [parse_capsule(block) for block in parts]


def parse_capsule(text: str) -> Capsule:
    """Read a capsule's lines, in any order.

    Raises ConfigError for an unknown, missing or damaged line.
    """
    allowed = [field.name for field in fields(Capsule)]
    contents: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, colon, content = line.partition(":")
        if key not in allowed or not colon:
            raise ConfigError(f"capsule: {shortened(key)}: not a key of a capsule; {did_you_mean(key, allowed)}")
        try:
            contents[key] = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"capsule: {key}: cannot be read ({first_line(error)}); copy the whole line") from None
    if missing := [key for key in allowed if key not in contents]:
        raise ConfigError(f"capsule: {missing[0]}: required, but not given")
    try:
        contents["noise"] = {column: Noise(*map(float, noise)) for column, noise in contents["noise"].items()}
        capsule = Capsule(**contents)
        capsule.lock_texts(), capsule.trial["trial_id"], int(capsule.trial["seed"]), capsule.config["backend"]["name"]
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise ConfigError(f"capsule: cannot be read ({type(error).__name__}: {first_line(error)})") from None
    return capsule


def _unpacked_lock(name: str, content: str) -> str:
    lock = zlib.decompressobj().decompress(base64.b64decode(content), LARGEST_LOCK + 1).decode()
    if len(lock) > LARGEST_LOCK:
        raise ConfigError(f"lock {shortened(name)} is longer than {LARGEST_LOCK} bytes")
    if line := foreign_line(name, lock):
        raise ConfigError(f"lock {shortened(name)}: {shortened(line)}: expected name==version")
    return lock


def packed_lock(lock: str) -> str:
    """Return the content of a lockfile as stored in a capsule."""
    return base64.b64encode(zlib.compress(lock.encode(), 9)).decode()
