"""Lines of JSON that carry a checksum, so that a line altered by a disk or by hand is rejected.

Each line is one object whose last key, `crc`, is the CRC-32 of everything before it. Lines without a checksum come from
an older version: they are accepted until the first line that has a checksum.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

SEAL = re.compile(rb', "crc": "([0-9a-f]{8})"}$')
SEAL_BYTES = 20
LIKE_SEAL = re.compile(rb'[0-9a-f]{8}"}$')


def sealed(entry: Mapping[str, Any]) -> bytes:
    """Return the line for an entry, including the line end."""
    body = json.dumps(entry, default=str).encode()[:-1]
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def unsealed(line: bytes) -> tuple[dict[str, Any], bool]:
    """Return the entry in a line, and whether the line has a checksum. Raises ValueError if the line is damaged."""
    line = line.rstrip()
    seal = SEAL.search(line, max(0, len(line) - SEAL_BYTES))
    if seal is not None:
        line = line[: seal.start()]
        if zlib.crc32(line) != int(seal[1], 16):
            raise ValueError("its checksum does not match")
        line += b"}"
    elif b', "crc": "' in line[-24:] or LIKE_SEAL.search(line):
        raise ValueError("its checksum is damaged")
    entry = _parsed_line(line)
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    return entry, seal is not None


def _parsed_line(line: bytes) -> Any:
    """Return the value of a line of JSON. Raises ValueError for anything else.

    orjson is several times as fast as json, and its objects share their key strings in memory. It rejects NaN, which
    json may have written.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None


def entries(
    lines: Iterable[bytes],
    fits: Callable[[dict[str, Any]], bool] = lambda entry: True,
    on_damage: Callable[[int, bytes, str], None] = lambda number, line, problem: None,
) -> Iterator[dict[str, Any]]:
    """Yield the valid entries that `fits` accepts; report all other lines to `on_damage`, numbered from 1."""
    vouched = False
    for number, line in enumerate(lines, start=1):
        try:
            entry, has_seal = unsealed(line)
            if vouched and not has_seal:
                raise ValueError("it has no checksum")
            if not fits(entry):
                raise ValueError("not an entry that this file may contain")
        except ValueError as error:
            on_damage(number, line, str(error))
            continue
        vouched = vouched or has_seal
        yield entry
