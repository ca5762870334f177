"""Tables, figures and a report from the files of a run. Reads what `sweep.store` wrote; never starts anything.

`analysis.load("results/throughput_bound")` is the trials as a pandas frame, `analysis.requests(folder, trial_id)` and
`analysis.telemetry(folder, trial_id)` what is behind them.
"""

from analysis.load import RunNotFound, load, open_run, requests, telemetry

__all__ = ["RunNotFound", "load", "open_run", "requests", "telemetry"]
