"""The log of true times, to check a measuring client against."""

import struct
from array import array
from pathlib import Path
from typing import NamedTuple


class Truth(NamedTuple):
    """The server's times of one prompt, in ns of CLOCK_MONOTONIC."""

    arrival: int  # the request's last byte, by the kernel
    writes: "array[int]"  # of each token event
    last_write: int


_LOG_HEAD = struct.Struct("<HHqI")  # bytes of the id, index in a list of prompts, arrival, token events


class TruthLog:
    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - open as long as the process lives

    def add(self, request_id: bytes, index: int, arrival: int, writes: "array[int]") -> None:
        self._file.write(_LOG_HEAD.pack(len(request_id), index, arrival, len(writes)) + request_id)
        self._file.write(writes)

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> dict[tuple[str, int], Truth]:
    """True times by x-request-id and index of the prompt in its list (0 for a single prompt)."""
    data, position, truths = path.read_bytes(), 0, {}
    while position < len(data):
        length, index, arrival, count = _LOG_HEAD.unpack_from(data, position)
        position += _LOG_HEAD.size
        request_id = data[position : position + length].decode()
        position += length
        writes = array("q")
        writes.frombytes(data[position : position + 8 * count])
        position += 8 * count
        truths[request_id, index] = Truth(arrival, writes, writes[-1] if writes else 0)
    return truths
