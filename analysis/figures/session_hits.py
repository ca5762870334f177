"""Cached input by turn, as a share: by usage, and in an infinite cache; beside the engine's counter for all turns."""

import numpy as np
from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.by_turn import by_turn
from analysis.point_names import Layout
from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Mask

POSITION = 24


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a panel for each task; None if no trial has later turns with cached or shared input."""
    curves = {"by usage": _cached, "an infinite cache": _ideal}
    return by_turn(run, layout, "Cached input by turn", "share of the input", curves, "prefix_hit_rate")


def _cached(records: Records, turns: Mask) -> float:
    return _share_of(records.cached_tokens, records.input_tokens, turns)


def _ideal(records: Records, turns: Mask) -> float:
    asked = np.asarray(records.asked_input_tokens)
    inputs = np.where(asked == UNKNOWN, np.asarray(records.input_tokens), asked)
    return _share_of(records.ideal_cached_tokens, inputs, turns)


def _share_of(tokens: object, inputs: object, turns: Mask) -> float:
    """Return the tokens' share of the inputs over the turns for which both are known, else NaN."""
    parts, wholes = np.asarray(tokens)[turns], np.asarray(inputs)[turns]
    known = (parts != UNKNOWN) & (wholes > 0)
    return float(parts[known].sum() / wholes[known].sum()) if known.any() else np.nan
