"""The studies' tables and findings, from the YAML files in data/."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import Field

from analysis.studies.checks import BestCheck, ConstantCheck, GainsCheck, OnceCheck, RangeCheck, RatioCheck, RisingCheck
from analysis.studies.fitting import FitsCheck
from sweep.base.config import Strict, validate

STUDY_FILES = Path(__file__).parent / "data"


class PublishedTable(Strict):
    """The rows that a study published for one experiment, in the units of trials.parquet, rounded as published."""

    baseline: dict[str, Any]  # the row that other rows are compared with
    same: tuple[str, ...]  # columns in which a row and its baseline are equal
    rows: tuple[dict[str, Any], ...]

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(list(self.rows))

    @property
    def exact(self) -> pd.DataFrame:
        """Return the rows with every value also as both ends of its interval, since published values are exact."""
        figures = self.frame
        numbers = figures.select_dtypes("number")
        ends = {f"{name}_new_launch_{end}": numbers[name] for name in numbers for end in ("low", "high")}
        return figures.assign(**ends)


class PublishedFinding(Strict):
    """A study's claim, and the check that decides it on a table of points."""

    name: str
    claim: str
    experiments: tuple[str, ...]
    check: Annotated[
        BestCheck | RatioCheck | RisingCheck | ConstantCheck | GainsCheck | RangeCheck | FitsCheck | OnceCheck,
        Field(discriminator="kind"),
    ]
    hardware: tuple[str, ...] = ()  # hardware profiles that it applies to, e.g. because memory matters; empty: any
    premise: RangeCheck | None = None  # condition that a run must meet; the study's table is assumed to meet it
    note: str | None = None  # a note printed with the judgement, on the study's table or on settings here


class Study(Strict):
    """A published study."""

    name: str
    title: str
    asked: str
    source: str
    conditions: dict[str, str]
    tables: dict[str, PublishedTable]  # by experiment
    findings: tuple[PublishedFinding, ...]
    without_figures: dict[str, str] = Field(default_factory=dict)  # unpublished experiment -> its description

    @property
    def experiments(self) -> tuple[str, ...]:
        """The experiments that repeat the study; experiments with a published table come first."""
        judged = (name for finding in self.findings for name in finding.experiments)
        return tuple(dict.fromkeys([*self.tables, *judged, *self.without_figures]))


@cache
def all_studies() -> tuple[Study, ...]:
    """Return all studies."""
    files = sorted(STUDY_FILES.glob("*.yaml"))
    return tuple(validate(Study, yaml.safe_load(file.read_text(encoding="utf-8")), file.stem) for file in files)


def study_of(experiment: str) -> Study | None:
    """Return the study that an experiment follows, or None if it follows none."""
    return next((study for study in all_studies() if experiment in study.experiments), None)
