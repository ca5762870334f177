"""Lines of JSON that carry a checksum, so that a line altered by a disk or by hand is rejected.

Each line is one object whose last key, `crc`, is the CRC-32 of everything before it.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

SEAL = re.compile(rb', "crc": "([0-9a-f]{8})"}$')
SEAL_BYTES = 20


def sealed(entry: Mapping[str, Any]) -> bytes:
    """Return the line for an entry, including the line end."""
    body = json.dumps(entry, default=str).encode()[:-1]
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def unsealed(line: bytes) -> dict[str, Any]:
    """Return the entry in a line. Raises ValueError if the line is damaged."""
    line = line.rstrip()
    seal = SEAL.search(line, max(0, len(line) - SEAL_BYTES))
    if seal is None:
        raise ValueError("its checksum is missing or damaged")
    body = line[: seal.start()]
    if zlib.crc32(body) != int(seal[1], 16):
        raise ValueError("its checksum does not match")
    try:
        entry = orjson.loads(body + b"}")  # several times as fast as json, and objects share their keys in memory
    except orjson.JSONDecodeError:
        entry = json.loads(body + b"}")  # it has NaN, which orjson rejects
    return dict(entry)


def entries(
    lines: Iterable[bytes],
    check: Callable[[dict[str, Any]], None] = lambda entry: None,
    on_damage: Callable[[int, bytes, str], None] = lambda number, line, problem: None,
) -> Iterator[dict[str, Any]]:
    """Yield the entries; report damaged lines, and those for which `check` raises ValueError, numbered from 1."""
    for number, line in enumerate(lines, start=1):
        try:
            entry = unsealed(line)
            check(entry)
        except ValueError as error:
            on_damage(number, line, str(error))
            continue
        yield entry
