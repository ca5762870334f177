"""Computes which findings of a study a plan can decide, before it runs."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.statistics.intervals import FEWEST_REPLICATES
from analysis.studies.findings import points_answer
from analysis.studies.ruling import Ruling
from analysis.studies.run_points import HARDWARE
from analysis.studies.tables import Study, study_of
from analysis.studies.uncertain import LAUNCHES
from sweep.base.wording import count


def decidable_findings(
    experiment: str, hardware: str, replicates: int, configurations: Iterable[Iterable[Mapping[str, Any]]]
) -> str | None:
    """Return how many of the study's findings these configurations, each with its points, can decide.

    The result is None if the experiment follows no study. The findings are judged on a table in which every point has
    every quantity, with its interval. Whether the real intervals are narrow enough is known only after the run.
    """
    study = study_of(experiment)
    findings = [finding for finding in study.findings if experiment in finding.experiments] if study else []
    if study is None or not findings:
        return None
    points = pd.DataFrame(
        {**point, HARDWARE: hardware, LAUNCHES: frozenset([index]), "n": replicates, "outcomes": "ok"}
        for index, points_of_configuration in enumerate(configurations)
        for point in points_of_configuration
    )
    points = points.assign(**dict.fromkeys(_quantities(study, replicates), 1.0))
    without_premises = [finding.model_copy(update={"premise": None}) for finding in findings]  # known after the run
    undecidable = [each.name for each in without_premises if points_answer(each, points).ruling is Ruling.UNKNOWN]
    text = f"this plan can decide {len(findings) - len(undecidable)} of the study's {count(len(findings), 'finding')}"
    return f"{text}; not {', '.join(undecidable)}" if undecidable else text


def _quantities(study: Study, replicates: int) -> list[str]:
    """Return the columns that the findings use, with the ends of the intervals that this many launches give."""
    quantities = {finding.check.column for finding in study.findings if finding.check.column}
    quantities |= {"memory_mean_bytes", "output_throughput", "peak_output_throughput"}  # of checks that name no column
    interval = "new_launch" if replicates >= FEWEST_REPLICATES else "ci"
    return [f"{quantity}{end}" for quantity in quantities for end in ("", f"_{interval}_low", f"_{interval}_high")]
