"""The log of true times, to check a measuring client against: a JSON object a line."""

import json
from pathlib import Path
from typing import NamedTuple


class Truth(NamedTuple):
    """The server's times of one prompt, in ns of CLOCK_MONOTONIC."""

    arrival: int  # the request's last byte, by the kernel
    writes: list[int]  # of each token event

    @property
    def last_write(self) -> int:
        return self.writes[-1]


def log_line(request_id: bytes, index: int, truth: Truth) -> str:
    return json.dumps([request_id.decode("latin-1"), index, *truth]) + "\n"


def read_log(path: Path) -> dict[tuple[str, int], Truth]:
    """True times by x-request-id and index of the prompt in its list (0 for a single prompt)."""
    lines = map(json.loads, path.read_text().splitlines())
    return {(request_id, index): Truth(arrival, writes) for request_id, index, arrival, writes in lines}
