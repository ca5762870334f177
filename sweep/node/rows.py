"""The rows of trials: measured, unmeasured, or recomputed after settings have changed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from backends.base import Backend
from backends.launch import host_facts
from backends.launch.gpus import driver, find_gpu
from backends.prepare import locks
from sweep.base import code_version
from sweep.base.config import NAMED_GROUPS, NOT_OF_A_ROW, Settings
from sweep.base.exits import Exit
from sweep.base.records import PROTOCOL_VERSION, Outcome, Records
from sweep.disk import run_files
from sweep.disk.row import EngineFacts, Identity, TrialRow, Verdict, percentiles_of, percentiles_text
from sweep.disk.run_files import RunPaths
from sweep.node.verdict import has_fixed_length
from sweep.node.work import PreparedNode, RunningEngine, Work
from sweep.numbers.quantities.throughput import cost_at_token_prices, cost_per_million_tokens
from sweep.numbers.quantity import Value, columns
from sweep.numbers.selection import Window
from sweep.numbers.steady import steady_window
from sweep.numbers.summarise import summarise
from sweep.numbers.warnings import warning_codes
from sweep.plan.plan import Deployment, Trial, config_text, elsewhere, hourly_price

AS_MEASURED = ("accelerator", "digests", "commit", "protocol", "percentiles")
"""The columns of its identity that a replayed row has from the measurement."""


def identity(work: Work, trial: Trial, accelerator: str | None = None) -> Identity:
    """Return the part of a row that is known before the measurement; `accelerator` is the GPU's model name."""
    deployment, hardware = work.deployment, work.settings.hardware
    if not elsewhere(deployment.backend, hardware):
        accelerator = hardware.accelerator or accelerator or hardware.name
    return Identity(
        trial_id=trial.trial_id,
        deployment_id=deployment.deployment_id,
        attempt=work.attempt,
        experiment=work.settings.name,
        label=_label(deployment, trial),
        backend=deployment.backend.name,
        model=deployment.model.name,
        workload=trial.workload.name,
        load=trial.load.name,
        **trial.load_columns(),
        replicate=trial.replicate,
        seed=trial.seed,
        price_per_hour=hourly_price(deployment.backend, hardware),
        accelerator=accelerator,
        gpu_count=deployment.gpu_count,
        replicas=deployment.backend.replicas,
        percentiles=percentiles_text(work.settings.percentiles),
        slo=slo_text(work.settings),
        config=config_text(trial.config),
        settings=_settings_text(work),
        digests=None if deployment.unavailable else json.dumps({**_contents(deployment), **trial.content}),
        commit=code_version.commit(),
        protocol=PROTOCOL_VERSION,
        started_at=code_version.now(),
    )


def unmeasured_row(
    work: Work,
    trial: Trial,
    outcome: Outcome,
    reason: str | None,
    log_tail: str | None = None,
    engine: EngineFacts | None = None,
    exit: Exit | None = None,
) -> dict[str, Any]:
    """Return the row of a trial that ended before it was measured."""
    verdict = Verdict(outcome=outcome, reason=reason, exit=exit, log_tail=log_tail, ended_at=code_version.now())
    axes = coordinates(trial, work.axes)
    row = TrialRow(identity=identity(work, trial), verdict=verdict, axes=axes, engine=engine).flat()
    return {"driver": driver()} | row


def replayed_row(
    work: Work, trial: Trial, measured: Mapping[str, Any], table: str, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a table's row as this trial's row, with the trial's `own` columns and the table's digest."""
    planned = asdict(identity(work, trial))
    facts = json.loads(measured.get("engine_facts") or "{}") | {"replayed": table}
    row = {"outcome": Outcome.OK.value, "client_stamp_source": "table", **planned}
    row |= {column: cell for column, cell in measured.items() if "." not in column}
    row |= {column: cell for column, cell in planned.items() if column not in AS_MEASURED}
    row |= {"engine_facts": json.dumps(facts), **own, **coordinates(trial, work.axes)}
    return row | ({"warnings": warning_codes(row)} if row["outcome"] == Outcome.OK else {})


def _settings_text(work: Work) -> str:
    """Return the run's settings needed to measure a trial again, and whether replicates were launched separately.

    The bounds and percentiles are columns of the row, since they can change without a new measurement.
    """
    settings = work.settings.model_dump(mode="json", exclude=NOT_OF_A_ROW, exclude_defaults=True)
    relaunch = "once" if work.deployment.replicate is None else "per_replicate"
    return json.dumps({**settings, "relaunch": relaunch, "assumed": work.settings.hardware.assumed}, sort_keys=True)


def _contents(deployment: Deployment) -> dict[str, str]:
    """Return the digests of a deployment's files, with the name and digest of its environment's lockfile."""
    spec = deployment.environment
    if spec is None or spec.lock is None:
        return deployment.content
    return {**deployment.content, "lock": f"{locks.file_name(spec)} {locks.lock_digest(locks.text(spec))}"}


def _label(deployment: Deployment, trial: Trial) -> str:
    return f"{deployment.describe()} {trial.describe()}"


def _cost(backend: Backend, row: Mapping[str, Any], price: float | None) -> float | None:
    """Return the cost of a million output tokens, from a row's throughput and hourly price or from token prices."""
    if not backend.launches and (prices := backend.price_per_million_tokens) is not None:
        if row.get("prompts_counted") is False and prices.input:
            return None
        return cost_at_token_prices(prices.input, prices.output, row.get("input_tokens"), row.get("output_tokens"))
    return cost_per_million_tokens(price, row.get("gpu_count") or 0, row.get("output_throughput"))


def coordinates(trial: Trial, axes: Iterable[str]) -> dict[str, Any]:
    """Return the columns of the experiment's axes, except config groups, which have separate columns."""
    values = {axis: trial.coordinates.get(axis) for axis in axes if axis not in NAMED_GROUPS}
    # A flag may be a mapping: {method: ngram, ...}. A column contains it as text.
    return {axis: json.dumps(value) if isinstance(value, dict | list) else value for axis, value in values.items()}


def slo_text(settings: Settings) -> str | None:
    """Return the bounds for goodput as the text stored in a row; None if no bounds are set."""
    return json.dumps(settings.slo, sort_keys=True) if settings.slo else None


def present_row(
    row: Mapping[str, Any], deployment: Deployment, trial: Trial, settings: Settings, axes: Iterable[str]
) -> dict[str, Any]:
    """Return a row updated to the current plan: values that are not part of the id may have changed."""
    price = hourly_price(deployment.backend, settings.hardware)
    cost = _cost(deployment.backend, row, price)
    columns = {"experiment": settings.name, "price_per_hour": price, "cost_per_million_tokens": cost}
    return {**row, **columns, "label": _label(deployment, trial), **coordinates(trial, axes)}


def is_current(row: Mapping[str, Any], settings: Settings) -> bool:
    """Return whether a row has the current percentiles and bounds for goodput."""
    return row.get("percentiles") == percentiles_text(settings.percentiles) and row.get("slo") == slo_text(settings)


def recomputed_row(row: Mapping[str, Any], trial: Trial, settings: Settings, paths: RunPaths) -> dict[str, Any] | None:
    """Recompute a row under the current settings from its timestamps on disk; None if their file is gone."""
    try:
        records = run_files.read_requests(paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).requests)
    except (FileNotFoundError, run_files.DamagedFile):
        return None
    series = {name for name, statistic in columns(percentiles_of([row])).items() if statistic.quantity.per is not None}
    measured = summarise(
        records,
        slo=settings.slo or {},
        discard_first_batch=getattr(trial.load, "discard_first", False),
        templated=_is_templated(trial.config.get("backend", {}).get("api")),
        window=Window(row.get("steady_begin"), row.get("steady_end"), row.get("steady_method", "")),
        percentiles=settings.percentiles,
    )
    present = {"percentiles": percentiles_text(settings.percentiles), "slo": slo_text(settings)}
    recomputed = {name: value for name, value in row.items() if name not in series} | measured | present
    return recomputed | {"warnings": warning_codes(recomputed)}  # a row from an older version lacks them


def _is_templated(api: str | None) -> bool:
    """Return whether an API sends chat messages, to which a chat template adds tokens."""
    return api not in ("completions", "tgi", None)


def engine_facts(running: RunningEngine, caches_reset: bool | None, prompt_salt: str | None = None) -> EngineFacts:
    """Return the row's columns that describe the engine, without measured quantities."""
    facts, node = running.facts, running.node
    return EngineFacts(
        launch=running.launch,
        engine_version=facts.get("engine_version"),
        dtype=facts.get("dtype"),
        coarser_format=facts.get("coarser_format"),
        agreement_reference=facts.get("agreement_reference"),
        quality_reference=facts.get("quality_reference"),
        versions=json.dumps({**code_version.own_versions(), **node.environment.versions}),
        hardware=json.dumps({"node": node.name, **host_facts.hardware()}),
        driver=driver(),
        engine_facts=json.dumps({key: facts[key] for key in facts if key != "versions"}, default=str),
        caches_reset=caches_reset,
        prompt_salt=prompt_salt,
        batch_form=None,  # the client chooses it for each trial
    )


def gpu_name(node: PreparedNode) -> str | None:
    """Return the GPU's model name as its driver reports it."""
    return next((gpu.name for gpu in filter(None, map(find_gpu, node.launch.gpus))), None)


def trial_quantities(work: Work, trial: Trial, records: Records, inputs: Mapping[str, Any]) -> dict[str, Value]:
    """Return the values of all quantities of the trial, by name."""
    discard_first, backend = getattr(trial.load, "discard_first", False), work.deployment.backend
    model = work.deployment.model
    price, gpu_count = hourly_price(backend, work.settings.hardware), work.deployment.gpu_count
    values = summarise(
        records,
        slo=work.settings.slo or {},
        discard_first_batch=discard_first,
        window=steady_window(records, discard_first),
        fixed_length=trial.workload.ignore_eos,
        exact_length=has_fixed_length(work, trial),
        unlike_prompts=trial.workload.unique_header and not trial.workload.replays,
        endpoint=not backend.launches,
        templated=_is_templated(backend.api),
        asked_model=None if backend.launches else model.served_name or model.name,
        open_loop=trial.load.open_loop,
        percentiles=work.settings.percentiles,
        price_per_hour=price,
        gpu_count=gpu_count,
        reserves_memory=backend.traits.reserves_memory,
        **inputs,
    )
    return values | {"cost_per_million_tokens": _cost(backend, {**values, "gpu_count": gpu_count}, price)}
