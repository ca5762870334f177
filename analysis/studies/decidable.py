"""Which findings of a study a plan can decide, before it runs."""

import pandas as pd

from analysis.statistics.intervals import FEWEST_REPLICATES
from analysis.studies.findings import judge_finding
from analysis.studies.run_points import HARDWARE
from analysis.studies.tables import Study, study_of
from analysis.studies.uncertain import LAUNCHES
from sweep.base.setting_labels import dotted
from sweep.base.wording import count
from sweep.plan.plan import Plan


def decidable_findings(plan: Plan) -> str | None:
    """Return how many of the study's findings the plan's points and launches can decide; None without a study.

    The findings are judged on a table in which every planned point has every quantity, with its interval. Whether the
    real intervals are narrow enough is known only after the run.
    """
    study = study_of(plan.settings.name)
    findings = [finding for finding in study.findings if plan.settings.name in finding.experiments] if study else []
    if study is None or not findings:
        return None
    points = _complete_points(plan, study)
    without_premises = [finding.model_copy(update={"premise": None}) for finding in findings]  # known after the run
    judged = [judge_finding(study, finding, plan.settings.name, points) for finding in without_premises]
    undecidable = [each.finding.name for each in judged if each.judgement == "not testable here"]
    text = f"this plan can decide {len(findings) - len(undecidable)} of the study's {count(len(findings), 'finding')}"
    return f"{text}; not {', '.join(undecidable)}" if undecidable else text


def _complete_points(plan: Plan, study: Study) -> pd.DataFrame:
    """Return the planned points that can run, with 1 for every quantity that a finding or the study's table uses."""
    quantities = {finding.check.column for finding in study.findings if finding.check.column}
    quantities |= {"memory_mean_bytes", "output_throughput", "peak_output_throughput"}
    interval = "new_launch_" if plan.settings.replicates >= FEWEST_REPLICATES else "ci_"
    ends = (f"{interval}low", f"{interval}high")
    columns = [*quantities, *(f"{quantity}_{end}" for quantity in quantities for end in ends)]
    points = [
        {
            **dotted(trials[0].config),
            **trials[0].load_columns(),
            **trials[0].coordinates,
            "backend": deployment.backend.name,
            "workload": trials[0].workload.name,
            "n": plan.settings.replicates,
            HARDWARE: plan.settings.hardware.name,
            LAUNCHES: frozenset([index]),
            "outcomes": "ok",
        }
        for index, deployment in enumerate(plan.deployments)
        if not deployment.unavailable
        for trials in deployment.points()
    ]
    return pd.DataFrame(points).assign(**dict.fromkeys(columns, 1.0))
