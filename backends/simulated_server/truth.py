"""The log of true times, used to check a measuring client: one JSON object per line."""

import json
from pathlib import Path
from typing import NamedTuple


class Truth(NamedTuple):
    """The server's times for one prompt, in ns of CLOCK_MONOTONIC."""

    arrival: int  # the kernel's timestamp of the request's last byte
    writes: list[int]  # time of each token event

    @property
    def last_write(self) -> int:
        return self.writes[-1]


def log_line(request_id: bytes, index: int, truth: Truth) -> str:
    return json.dumps([request_id.decode("latin-1"), index, *truth]) + "\n"


def read_log(path: Path) -> dict[tuple[str, int], Truth]:
    """Return the true times by x-request-id and by the prompt's index in its list (0 for a single prompt)."""
    lines = map(json.loads, path.read_text().splitlines())
    return {(request_id, index): Truth(arrival, writes) for request_id, index, arrival, writes in lines}
