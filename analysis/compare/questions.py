"""Describes each point's task and load as text, across runs. Points with equal texts are compared."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from analysis.compare.matching import QUESTION_PREFIXES, machines, question_digests
from analysis.compare.sides import trial_settings
from analysis.statistics.comparison import Positions, positions
from analysis.statistics.contests import GPUS

_settings_text = partial(json.dumps, sort_keys=True, default=str)


def conditions(
    rows: pd.DataFrame, point: Positions, points: Sequence[int], of_a_load: Sequence[frozenset[str]]
) -> dict[str, list[str]]:
    """Return the conditions of each point, as JSON: model, workload, load, their files, protocol, machine."""
    every = positions(point, max(points, default=-1) + 1)
    rows_at = [every[index] for index in points]
    equal = [_equal_settings(rows.iloc[of_point[:1]]) for of_point in rows_at]
    at_any = [
        {key: value for key, value in each.items() if key not in sizes}
        for each, sizes in zip(equal, of_a_load, strict=True)
    ]
    files = rows[["digests"]]  # rows are wide
    digests = [question_digests(files.iloc[of_point]) for of_point in rows_at]
    return {"conditions": _condition_texts(equal, digests), "conditions_at_any_load": _condition_texts(at_any, digests)}


def _equal_settings(first: pd.DataFrame) -> dict[str, Any]:
    """Return the settings that must be equal for a comparison, from a point's first row."""
    settings = trial_settings(first.to_dict("records")[0])
    equal = {key: value for key, value in settings.items() if key.startswith(QUESTION_PREFIXES)}
    equal |= {"protocol": str(first["protocol"].iloc[0]), "machine": sorted(machines(first))}
    return equal | {GPUS: settings.get(GPUS)}


def _condition_texts(settings: Sequence[dict[str, Any]], digests: Sequence[dict[str, str]]) -> list[str]:
    """Return each point's settings as JSON, plus a part's digest if equal settings occur with different digests.

    If there is only one digest, a point with an unknown digest is assumed to have it, as in a comparison of two runs.
    """
    texts = [_settings_text(each) for each in settings]
    known: dict[tuple[str, str], set[str]] = {}
    for text, of_point in zip(texts, digests, strict=True):
        for part, digest in of_point.items():
            known.setdefault((text, part), set()).add(digest)
    return [
        _settings_text(each | {f"files of {part}": of_point[part] for part in of_point if len(known[text, part]) > 1})
        for each, text, of_point in zip(settings, texts, digests, strict=True)
    ]
