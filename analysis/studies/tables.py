"""The studies' tables and findings, from the YAML files in data/."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import Field

from analysis.studies.checks import (
    BestCheck,
    ColumnsCheck,
    FitsCheck,
    PeakCheck,
    RatioCheck,
    RisingCheck,
    SpreadCheck,
)
from sweep.config import Strict, validate

STUDY_FILES = Path(__file__).parent / "data"


class PublishedTable(Strict):
    """The rows that a study prints for one experiment, in the units of trials.parquet; rounded as they were."""

    baseline: dict[str, Any]  # the row that the others are compared with
    same: tuple[str, ...]  # columns in which a row and its baseline agree
    rows: tuple[dict[str, Any], ...]

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(list(self.rows))


class PublishedFinding(Strict):
    """A claim of a study, and the check that tells from a table of points whether it holds there."""

    name: str
    claim: str
    experiments: tuple[str, ...]
    check: Annotated[
        SpreadCheck | BestCheck | RatioCheck | RisingCheck | PeakCheck | FitsCheck | ColumnsCheck,
        Field(discriminator="kind"),
    ]
    note: str | None = None  # about a contradiction with its own table


class Study(Strict):
    """A published study."""

    name: str
    title: str
    asked: str
    source: str
    conditions: dict[str, str]
    tables: dict[str, PublishedTable]  # by experiment
    findings: tuple[PublishedFinding, ...]


@cache
def all_studies() -> tuple[Study, ...]:
    """Return all studies."""
    files = sorted(STUDY_FILES.glob("*.yaml"))
    return tuple(validate(Study, yaml.safe_load(file.read_text(encoding="utf-8")), file.stem) for file in files)


def study_of(experiment: str) -> Study | None:
    """Return the study that an experiment follows; None if it follows none."""
    named = (study for study in all_studies() for finding in study.findings if experiment in finding.experiments)
    return next(named, None)
