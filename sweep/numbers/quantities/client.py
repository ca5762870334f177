"""Statistics of the measuring client (`client`), and quantities of the launch and of the trial as a whole."""

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, cast

from sweep.numbers.quantity import Quantity, declare

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
    "start_spread": ("s", float, "time between the first and the last user's start; null if the load has no users."),
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


def _input(name: str) -> Callable[..., Any]:
    """Return a function for a quantity that equals the input of this name."""
    function: Any = lambda **inputs: inputs[name]  # noqa: E731
    function.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY)])
    return cast("Callable[..., Any]", function)


COSTS = {
    "startup_seconds": "time from the engine's launch to its first successful answer.",
    "cold_ttft": "time to first token of the first request after the launch, with a prompt of about 16 tokens.",
    "wall_seconds": "elapsed time of the trial, including the warm-up.",
}
LABELS = {"startup_seconds": "Engine start-up", "cold_ttft": "Cold TTFT"}
AGREEMENT = "share of positions at which the engine's greedy token equals the reference token, after equal tokens."
WILSON = "lower end of the agreement's 95% interval (Wilson, for the prompts' effective number of positions)."
QUALITY = "exp of the mean log-probability per token of bundled text under the engine / the same under the reference."
STUDENT = "lower end of the quality's 95% interval (Student's t over the texts, for differences paired by token)."
OF_ANSWERS = {
    "agreement": AGREEMENT,
    "agreement_low": WILSON,
    "agreement_high": "upper end of the agreement's 95% interval.",
    "agreement_positions": "positions compared for agreement, without those at which the engine would end its answer.",
    "quality": QUALITY,
    "quality_low": STUDENT,
    "quality_high": "upper end of the quality's 95% interval.",
    "quality_tokens": "tokens of the text on which the quality is based.",
}
for _name, _formula in (COSTS | OF_ANSWERS).items():
    _counted = _name in ("agreement_positions", "quality_tokens")
    declare(
        Quantity(
            name=_name,
            unit="s" if _name in COSTS else "" if _counted else "share",
            kind="count" if _name in COSTS else "validity",
            better="lower" if _name in COSTS else "higher" if _name in ("agreement", "quality") else None,
            type=int if _counted else float,
            function=_input(_name),
            formula=_formula,
            label=LABELS.get(_name),
        )
    )

ANSWERS = tuple(OF_ANSWERS)
"""Quantities measured once per launch, equal in the rows of all its trials."""
