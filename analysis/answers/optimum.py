"""The answer of a run with nothing to compare: the load or length at which its configuration is fastest."""

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.answers.sentences import caveats, lead, times_text
from analysis.answers.task_answer import TaskAnswer
from analysis.quantities import labelled_column
from analysis.results import RunResults

THROUGHPUT = "output_throughput"
MOST_TASKS = 3  # within a sentence


def leading_sentence(results: RunResults, answers: Sequence[TaskAnswer]) -> str:
    """Return the sentence that covers all answers or, if nothing has a rival, where each configuration is fastest."""
    if any(len(answer.configurations) > 1 or answer.criterion.bounds for answer in answers):
        return lead(answers)
    fastest = list(_fastest(results))[:MOST_TASKS]
    return "; ".join(fastest) + caveats(answers) if fastest else lead(answers)


def _fastest(results: RunResults) -> Iterator[str]:
    layout, quantity = results.layout, labelled_column(THROUGHPUT)
    points = layout.points
    if quantity is None or layout.x is None or THROUGHPUT not in points:
        return
    barred = np.array([bool(results.contests.barred([THROUGHPUT], int(at))) for at in points.index], np.bool_)
    measured = points[points[THROUGHPUT].notna() & points[layout.x].notna() & ~barred]
    if "as_offered" in measured:  # the setting that varies has no optimum
        measured = measured[~measured["as_offered"].eq(True)]
    for (line, panel), group in measured.groupby(["line", "panel"], sort=False):
        group = group.sort_values(layout.x, kind="stable")
        fastest = int(group[THROUGHPUT].argmax())
        compared = 0 if fastest == len(group) - 1 else len(group) - 1  # the other end
        if fastest == compared:
            continue
        best, reference = group.iloc[fastest], group.iloc[compared]
        places = group.index.to_numpy(np.int64)
        task = f", {panel}" if points["panel"].nunique() > 1 else ""
        speed = f"{quantity.shown(float(best[THROUGHPUT]))} {quantity.unit}"
        ratio = times_text(*results.contests.ratios(quantity, [(places[fastest], places[compared])])[:, 0])
        yield f"{line}{task} is fastest at {layout.load(best)}: {speed}, {ratio} that at {layout.load(reference)}"
