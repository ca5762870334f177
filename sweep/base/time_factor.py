"""The factor that scales heartbeats, time-outs and back-offs between driver, nodes and stores.

SWEEP_TIME_FACTOR=0.25 in the driver's environment shortens them to a quarter, also on the nodes. It is for tests that
simulate a night of faults in minutes. It does not scale measurements, settings, or the duration of real work such as
opening a connection.
"""

import math
import os
from collections.abc import Mapping

from sweep.base.config import ConfigError

FACTOR_VARIABLE = "SWEEP_TIME_FACTOR"


def time_factor(environ: Mapping[str, str]) -> float:
    """Return the time factor in an environment, by default 1. Raises ConfigError for an invalid factor."""
    text = environ.get(FACTOR_VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ConfigError(f"{FACTOR_VARIABLE}={text}: expected a number above 0")
    return factor


TIME_FACTOR = time_factor(os.environ)


def scaled(seconds: float) -> float:
    """Return `seconds` times this process's time factor."""
    return seconds * TIME_FACTOR
