"""Compares an engine's answers with answers of transformers at launch: its greedy tokens and its log-probabilities.

agreement: the share of positions at which the engine's greedy token equals the reference token, each after the same
reference tokens (`answers.Comparison`). quality: exp of the mean log-probability per token of bundled text under the
engine, divided by the reference's. The reference is computed in float32, or in the model's dtype if float32 does not
fit. This happens once per model and node, before an engine uses the memory. The engine's answers are compared once per
deployment and node: a second launch with the same weights, configuration and environment on the same GPUs is not
compared again. A failed comparison does not fail a trial, but an interval entirely below `gate` makes its trials
invalid.
"""

import json
import math
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from backends.base import EnvironmentChoice, EnvironmentSpec, Launch, Progress
from backends.launch import task
from backends.launch.engine_environment import ENGINE_ENVIRON, inherited_environment
from backends.launch.host_facts import host
from backends.launch.server import Engine
from backends.prepare import environments, locks
from backends.prepare.build_once import build_once
from backends.prepare.programs import printed
from sweep.base.config import ROOT, content_hash, first_line
from sweep.base.exits import Failed, Outage
from sweep.base.whole_file import write_whole
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.drive import policy
from sweep.inputs.workload import DATA
from sweep.node import answers
from sweep.node.work import Work
from sweep.numbers import clustered
from sweep.numbers.clustered import Bounded

AGREEMENT_VERSION = 4  # part of the cache's key: increase it when the reference is computed differently
PROMPTS = 22  # story openings that every engine continues, in addition to requests of its trials
SAMPLED_REQUESTS = 8  # sampled from the trials' workloads
LONGEST_REQUEST = 1024  # tokens; longer requests are not sampled
TOKENS = 48  # tokens after each prompt: 1,440 positions in total
TEXT_TOKENS = 2048  # minimum tokens of bundled text
# The environments in conf/environment that have transformers.
ENVIRONMENT = EnvironmentChoice(cpu="cpu", cuda="transformers", cuda12="transformers_cuda12")
REFERENCE_TIMEOUT = 3600.0  # s; a large model on a CPU is slow
COMPARED = "answers.json"  # file in an attempt's folder: the columns of its comparison, with a checksum
SALT = "agreement"  # makes these prompts' prefixes differ, so that no engine's cache has the measured prompts
FAILURES = (httpx.HTTPError, OSError, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True)
class Reference:
    """The tokens that transformers generates after each prompt, and its log-probabilities of texts."""

    prompts: list[list[int]]  # token ids, including special tokens
    tokens: list[list[int]]
    texts: list[list[int]]
    log_probabilities: list[list[float]]  # for each text's tokens after its first
    ends: list[int]  # the model's EOS tokens
    made_by: str  # "transformers 5.19.0 float32"


class ReferenceFailed(Failed, ValueError):
    """transformers could not compute the reference; the message is its output."""


def reference(work: Work, launch: Launch, progress: Progress) -> Reference | str:
    """Return the reference for a deployment's model, or a short reason for its absence.

    Call it before an engine is launched, since it uses the engine's GPUs, cores and memory. Raises Outage.
    """
    backend, model = work.deployment.backend, work.deployment.model
    if not work.settings.agreement:
        return "none: agreement=false"
    if not backend.traits.computes_model:
        return "none: this engine does not compute a model"
    if not backend.launches:
        return "none: the weights of a running endpoint are unknown"
    if not model.comparable:
        return "none: agreement means nothing for random weights"
    try:
        spec = environments.resolve(ENVIRONMENT, "cuda" if launch.gpus else "cpu", host=host())
        spec = locks.locked(spec, work.cache, progress)
        fingerprint = environments.fingerprint(spec)
        tokenizer = model.load_tokenizer(work.cache)
        job = {"prompts": prompts(work, tokenizer), "texts": texts(tokenizer), "tokens": TOKENS}
        content = [AGREEMENT_VERSION, model.digest(work.cache), model.tokenizer, job, fingerprint]
        path = work.cache / "agreement" / f"{content_hash(content, 16)}.json"

        def compute(partial: Path) -> None:
            partial.write_text(json.dumps(_compute(spec, model, job, launch, work.cache, progress)))

        build_once(path, compute, f"answers of {model.name} by transformers", progress)
        return Reference(**json.loads(path.read_text()))
    except (environments.EnvironmentFailed, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        if policy.is_waited_for(error):
            raise Outage(str(error)) from error
        return f"none: {type(error).__name__}: {first_line(error)}"


def prompts(work: Work, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the openings that every engine continues, and a sample of requests from the trials' workloads."""
    samples = [[tokenizer.encode(text).ids for text in shipped("stories")[:PROMPTS]]]
    # Workloads whose requests can be made again: a different prefix keeps them apart from the measured requests.
    repeatable = (
        trial.workload
        for trial in work.deployment.trials
        if trial.workload.unique_header and not trial.workload.replays
    )
    workloads = {content_hash(each.model_dump(mode="json")): each for each in repeatable}
    for _, workload in sorted(workloads.items()):
        requests = workload.fetched(work.cache).requests(tokenizer, SAMPLED_REQUESTS, work.settings.seed, salt=SALT)
        ids = [tokenizer.encode(request.prompt).ids for request in requests]
        samples.append([each for each in ids if len(each) <= LONGEST_REQUEST][: -(-SAMPLED_REQUESTS // len(workloads))])
    # Interleaved, so that every group of concurrent prompts has some of each kind.
    return [prompt for turn in zip_longest(*samples) for prompt in turn if prompt is not None]


def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """Return passages of bundled text with at least TEXT_TOKENS tokens in total."""
    chosen: list[list[int]] = []
    for text in shipped("summarization"):
        if sum(len(ids) - 1 for ids in chosen) < TEXT_TOKENS:
            chosen.append(tokenizer.encode(text).ids)
    return chosen


def shipped(name: str) -> list[str]:
    """Return the prompts in one of the bundled files, which were written for this project."""
    lines = (DATA / "prompts" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def _compute(
    spec: EnvironmentSpec, model: Any, job: dict[str, Any], launch: Launch, cache: Path, progress: Progress
) -> dict[str, Any]:
    """Return the fields of a Reference, computed by a separate process in an environment with transformers."""
    # An engine without Python (llama.cpp) needs this environment too, so the message says what it is for.
    why = "for transformers, which computes the reference for agreement; agreement=false skips it"
    python = environments.prepare(spec, cache, lambda text: progress(f"{text} ({why})")).python
    folder = model.prepare(cache, progress)
    progress(f"computing the reference answers of {model.name}")
    device = "cuda" if launch.gpus else "cpu"
    job = {**job, "model": str(folder), "device": device}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with task.program([python, "-m", "backends.host.reference_tokens"], _reference_environ(launch), **pipes) as process:
        answer, errors = process.communicate(json.dumps(job), timeout=REFERENCE_TIMEOUT)
    if process.returncode != 0:
        last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise ReferenceFailed(last, printed(last))
    return {"prompts": job["prompts"], "texts": job["texts"], **json.loads(answer.strip().splitlines()[-1])}


def _reference_environ(launch: Launch) -> dict[str, str]:
    """Return the environment variables of the reference process: the engine's GPUs or all cores, and no secrets."""
    threads = launch.threads if launch.gpus else len(os.sched_getaffinity(0))
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)}
    return {**inherited_environment(("TRANSFORMERS_*",)), **ENGINE_ENVIRON, "PYTHONPATH": str(ROOT), **env}


def compare_once(work: Work, engine: Engine, expected: Reference | str, progress: Progress) -> dict[str, Any]:
    """Return the columns of `compare`, from an earlier attempt at this deployment on the same hardware if possible.

    The deployment's id identifies weights, configuration and environment. Without a shared results folder, an attempt
    cannot see earlier comparisons and makes a new one.
    """
    if isinstance(expected, str):
        return compare(work, engine, expected)
    key = content_hash([AGREEMENT_VERSION, asdict(expected), socket.gethostname(), engine.launch.gpus], 16)
    for path in sorted(work.folder.parent.glob(f"*/{COMPARED}")):
        try:
            earlier = unsealed(path.read_bytes())
        except (OSError, ValueError):
            continue
        if earlier.get("key") == key:
            columns: dict[str, Any] = earlier["columns"]
            columns["agreement_reference"] += f", compared at attempt {path.parent.name}"
            return {**columns, "below_gate": below_gate(work, engine, columns)}
    columns = compare(work, engine, expected, progress)
    if columns["agreement"] is not None:
        write_whole(work.folder / COMPARED, sealed({"key": key, "columns": columns}))
    return columns


def compare(
    work: Work, engine: Engine, expected: Reference | str, progress: Progress = lambda text: None
) -> dict[str, Any]:
    """Return a running engine's columns of agreement and quality (null if unknown), and why it fails the gate."""
    if isinstance(expected, str):
        return {"agreement": None, "agreement_reference": expected, "quality": None, "quality_reference": expected}
    progress("comparing the engine's answers with the reference")
    columns = _judged("agreement", "positions", expected.made_by, partial(_agreement, work, engine, expected))
    if engine.backend.wire.log_probabilities is None:
        reason = f"none: {engine.backend.name} returns no log-probabilities of a text"
        columns |= {"quality": None, "quality_reference": reason}
    else:
        columns |= _judged("quality", "tokens", expected.made_by, partial(_quality, work, engine, expected))
    return {**columns, "below_gate": below_gate(work, engine, columns)}


def _judged(name: str, unit: str, made_by: str, measure: Callable[[], tuple[Bounded, int]]) -> dict[str, Any]:
    """Return the columns of one quantity: its value, the ends of its interval, its sample size and its reference."""
    try:
        estimate, sample = measure()
    except FAILURES as error:
        problem = f"none: the engine's answer: {type(error).__name__}: {first_line(error)}"
        return {name: None, f"{name}_reference": problem}
    figures = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {**figures, f"{name}_{unit}": sample, f"{name}_reference": made_by}


def _agreement(work: Work, engine: Engine, expected: Reference) -> tuple[Bounded, int]:
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    ends, pairs = frozenset(expected.ends), zip(expected.prompts, expected.tokens, strict=True)
    comparisons = [answers.Comparison(prompt, tokens, ends) for prompt, tokens in pairs]
    gate = (work.settings.gate or {}).get("agreement", math.inf)
    limit = work.settings.comparison_limit
    finished = answers.finish(engine, tokenizer, comparisons, limit, lambda done: _share(done).low >= gate)
    if not any(each.judged for each in finished):
        raise ValueError("the engine ends every answer at once")
    return _share(finished), sum(each.judged for each in finished)


def _share(finished: Sequence[answers.Comparison]) -> Bounded:
    """Return the share of compared positions that match, with its interval (0 to 1 if no position was compared)."""
    judged = [each for each in finished if each.judged]
    if not judged:
        return Bounded(math.nan, 0.0, 1.0)
    return clustered.share([each.matched for each in judged], [each.judged for each in judged])


def _quality(work: Work, engine: Engine, expected: Reference) -> tuple[Bounded, int]:
    values = answers.log_probabilities(engine, expected.texts, work.settings.comparison_limit)
    reference = expected.log_probabilities[: len(values)]
    return clustered.ratio_of_likelihoods(values, reference), sum(map(len, values))


def below_gate(work: Work, engine: Engine, columns: Mapping[str, Any]) -> str | None:
    """Describe the quantity whose interval is entirely below `gate`; None if no interval does.

    Formats declared coarser than the model's are measured but not gated: their loss is expected and part of the
    comparison.
    """
    if not work.settings.gate or engine.backend.coarser(engine.launch):
        return None
    for name, least in sorted(work.settings.gate.items()):
        value, high = columns.get(name), columns.get(f"{name}_high")
        if value is not None and high is not None and high < least:
            interval = f"95% interval {columns[f'{name}_low']:.3f} to {high:.3f}"
            return f"{name} {value:.3f} ({interval}) with {columns[f'{name}_reference']} is below gate.{name}={least:g}"
    return None
