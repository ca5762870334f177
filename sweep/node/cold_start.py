"""Measures an engine's first answer after its launch, which includes compiling, allocating and lazy loading."""

import tempfile
from pathlib import Path

from backends.launch.server import Engine
from sweep.base.records import LONGEST_TIMEOUT, Request, Timeouts
from sweep.client.measurement import ClientDied, measure
from sweep.client.modes import Lockstep
from sweep.node.trial import target

PROMPT = "The first question after a launch is asked by itself, and its answer is one word:"


def measure_cold_start(engine: Engine, cpus: set[int], stall_timeout: float = LONGEST_TIMEOUT) -> float | None:
    """Send one request to an engine that was just launched; return the time to its first token in s.

    Return None if the engine was not launched here, is timed in-process, or did not answer (the trials will show why).
    """
    if not engine.backend.launches or engine.backend.traits.timed_inside:
        return None
    with tempfile.TemporaryDirectory(prefix="sweep-cold-") as folder:
        first = Request("cold-start", PROMPT, 1)
        patience = min(engine.backend.launch_timeout, stall_timeout, LONGEST_TIMEOUT)
        timeouts = Timeouts(first_token=patience, total=patience)
        try:
            records = measure(
                target(engine, ignore_eos=True),
                [],
                [first],
                Lockstep(1),
                folder=Path(folder),
                cpus=cpus,
                timeouts=timeouts,
            ).records
        except ClientDied:
            return None
    chunks = records.chunk_us
    return chunks[0] / 1e6 if chunks and records.error[0] is None else None
