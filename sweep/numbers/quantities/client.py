"""The measuring client's report on itself (`client`), and figures of the launch and the trial as a whole."""

from collections.abc import Callable
from typing import Any

from sweep.numbers.quantity import Quantity, declare, quantity

REPORT: dict[str, tuple[str, type, str]] = {
    "cpu": ("cores", float, "CPU time / elapsed time of the client's busiest process."),
    "cpu_seconds": ("s", float, "CPU time of all client processes in the measured part."),
    "peak_memory_bytes": ("bytes", int, "largest resident memory of a client process."),
    "loop_lag_p50": ("s", float, "median delay of the client's event loop."),
    "loop_lag_p99": ("s", float, "p99 of the delays of the client's event loop."),
    "reads": ("", int, "number of reads from sockets."),
    "multi_event_reads": ("", int, "reads that returned several token events, which therefore share a stamp."),
    "clock_steps": ("", int, "number of times that the host's clock was set while the client measured."),
    "processes": ("", int, "number of client processes."),
    "offered": ("requests", int, "requests that were due."),
    "sent": ("requests", int, "requests that were sent."),
    "start_spread": ("s", float, "time between the first and the last user's start; null without users."),
}
"""Field of the report -> unit, type and meaning."""


def _field(name: str) -> Callable[[Any], Any]:
    return lambda client: getattr(client, name)


for _name, (_unit, _type, _formula) in REPORT.items():
    declare(
        Quantity(
            name=f"client_{_name}",
            unit=_unit,
            kind="validity",
            type=_type,
            function=_field(_name),
            formula=_formula,
            label=f"Client {_name.replace('_', ' ')}",
        )
    )


@quantity(unit="s", kind="count", better="lower", label="Engine start-up")
def startup_seconds(startup_seconds: float | None) -> float | None:
    """time from the engine's launch to its first successful answer."""
    return startup_seconds


@quantity(unit="s", kind="count", better="lower", label="Cold TTFT")
def cold_ttft(cold_ttft: float | None) -> float | None:
    """time to first token of the first request after the engine's launch, with a prompt of about 16 tokens."""
    return cold_ttft


@quantity(unit="s", kind="count", better="lower")
def wall_seconds(wall_seconds: float) -> float:
    """elapsed time of the trial, including the warm-up."""
    return wall_seconds


@quantity(unit="share", kind="validity", better="higher")
def agreement(agreement: float | None) -> float | None:
    """share of positions at which the engine's greedy token is the reference's, after the reference's own tokens."""
    return agreement


@quantity(unit="share", kind="validity")
def agreement_low(agreement_low: float | None) -> float | None:
    """lower end of the agreement's 95 % interval (Wilson, for the prompts' effective number of positions)."""
    return agreement_low


@quantity(unit="share", kind="validity")
def agreement_high(agreement_high: float | None) -> float | None:
    """upper end of the agreement's 95 % interval."""
    return agreement_high


@quantity(unit="", kind="validity", type=int)
def agreement_positions(agreement_positions: int | None) -> int | None:
    """positions on which the agreement is based, without those at which the engine would end its answer."""
    return agreement_positions


@quantity(unit="share", kind="validity", better="higher")
def quality(quality: float | None) -> float | None:
    """exp of the mean log-probability of a token of shipped text under the engine, over that under the reference."""
    return quality


@quantity(unit="share", kind="validity")
def quality_low(quality_low: float | None) -> float | None:
    """lower end of the quality's 95 % interval (Student's t over the texts, for differences paired by token)."""
    return quality_low


@quantity(unit="share", kind="validity")
def quality_high(quality_high: float | None) -> float | None:
    """upper end of the quality's 95 % interval."""
    return quality_high


@quantity(unit="", kind="validity", type=int)
def quality_tokens(quality_tokens: int | None) -> int | None:
    """tokens of the text on which the quality is based."""
    return quality_tokens


AGREEMENT = (agreement, agreement_low, agreement_high, agreement_positions)
QUALITY = (quality, quality_low, quality_high, quality_tokens)
ANSWERS = tuple(function.__name__ for function in (*AGREEMENT, *QUALITY))
"""The columns measured at a launch, which are the same in the rows of all its trials."""
