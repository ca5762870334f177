"""The answer to a question about a grid's best point, and what became of its points."""

from typing import Any, NamedTuple

from analysis.table import KEY, Column, Table


class AskedPoint(NamedTuple):
    """A point that was measured, or a point or configuration that was dropped."""

    name: str
    state: str
    measured: float | None  # mean of its launches
    predicted: tuple[float | None, float | None]  # the 90% band


def asked_points(records: dict[str, dict[str, Any]]) -> "Table[AskedPoint]":
    """Return a table of what the searches measured and dropped, and why."""
    points = []
    for record in records.values():
        bands = {name: (low, high) for name, (low, _, high) in record["predicted"].items()}
        states = dict.fromkeys(record["measured"], "measured") | record["dropped"]
        states |= {name: "not measured" for name in bands if name not in states}
        points += [
            AskedPoint(name, state, record["measured"].get(name), bands.get(name, (None, None)))
            for name, state in states.items()
        ]
    return Table(ASKED_COLUMNS, points)


ASKED_COLUMNS: tuple[Column[AskedPoint], ...] = (
    Column("point", "a point, or a configuration that was not launched", lambda point: point.name, **KEY),
    Column("state", "measured, not measured, or why it was dropped", lambda point: point.state, kind="text wide"),
    Column("measured", "mean of its launches", lambda point: point.measured, of_value="the quantity's unit"),
    Column(
        "predicted_low, predicted_high",
        "90% band of the model, for choosing; never a result",
        lambda point: point.predicted,
        of_value="the quantity's unit",
    ),
)
"""The columns of a table of a question's points."""
