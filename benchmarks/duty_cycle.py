"""Slows a process down for real: stops it for a share of the time, in every PERIOD, until standard input ends.

    python -m benchmarks.duty_cycle PID SHARE

Prints a line once it has begun. At the end it prints, as JSON, the share of the time in which the process was stopped.
If a late wake-up lengthens one stop, the next stops are shorter, so that the share is right over a second. It also ends
with the process.
"""

import json
import os
import select
import signal
import sys
import time

PERIOD = 0.1  # s; with shorter periods, waking up would take a larger part


def slow_down(pid: int, share: float) -> float:
    """Stop a process for this share of the time until it or standard input ends. Return the actual share."""

    def ended_within(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], max(0.0, seconds))[0])

    began, stopped = time.monotonic(), 0.0
    print("begun", flush=True)
    ended = False
    while not ended:
        due = share * (time.monotonic() - began + PERIOD) - stopped
        if due > 0:
            try:
                os.kill(pid, signal.SIGSTOP)
                stop = time.monotonic()
                try:
                    ended = ended_within(due)
                finally:
                    os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                break
            stopped += time.monotonic() - stop
        ended = ended or ended_within(PERIOD - due)
    return stopped / (time.monotonic() - began)


if __name__ == "__main__":
    print(json.dumps(slow_down(int(sys.argv[1]), float(sys.argv[2]))))
