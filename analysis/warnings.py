"""Why a reader should not believe a number too readily, each with its remedy. A result carries its doubts.

Each function looks for one reason; what it yields is one sentence a reason.
"""

import json
from collections.abc import Iterator

import pandas as pd

from analysis.load import Run
from analysis.plotting.layout import Layout, listed
from analysis.summary import planned_trials

WIDE = 0.10  # half an interval over its mean
REQUESTS_FOR_P99 = 100  # with fewer, the p99 is all but the largest value
BUSY_CLIENT = 0.7  # of a core
AGREEING = 0.9  # of the reference's greedy tokens
UNEQUAL = 1.1  # most over fewest tokens in an answer
SHARED_READS = 0.01  # of the output tokens: from there on they are in the p99 of the gaps
SHORT_OF_RATE = 0.95  # of the rate that was offered


def doubts(run: Run, layout: Layout) -> list[str]:
    """Every reason that applies to a run."""
    reasons = (
        _replaced,
        _not_run,
        _replicates,
        _survivors,
        _intervals,
        _quantiles,
        _lost_requests,
        _client,
        _shared_stamps,
        _stamps,
        _start_up,
        _rate,
        _unsent,
        _agreement,
        _lengths,
        _memory,
        _baseline,
        _mixed,
        _forms,
    )
    return [sentence for reason in reasons for sentence in reason(run, layout)]


def _replaced(run: Run, layout: Layout) -> Iterator[str]:
    if run.experiment.get("replaced"):
        yield (
            f"This machine stood in for the study's ({'; '.join(run.experiment['replaced'])}): compare the engines"
            " here, not these figures with the study's."
        )


def _not_run(run: Run, layout: Layout) -> Iterator[str]:
    planned = planned_trials(run)
    if len(run.trials) < planned:
        yield (
            f"{planned - len(run.trials):,} of {planned:,} planned trials have not run: the same command goes on from"
            " here."
        )


def _replicates(run: Run, layout: Layout) -> Iterator[str]:
    alone, planned = layout.points["n"] == 1, layout.points["planned"]
    if "accelerator" in layout.points:  # replicates were spread over unlike GPUs: what was planned is the run's number
        planned = planned.clip(lower=int(run.experiment.get("replicates") or 1))
    few, left = int((alone & (planned == 1)).sum()), int((alone & (planned > 1)).sum())
    if few:
        yield f"{_of(few, layout.points)} have one replicate, so no interval: set replicates=3 or more."
    if left:
        yield (
            f"{_of(left, layout.points)} have a result of one replicate alone, so no interval: the others failed or"
            " have not run."
        )


def _survivors(run: Run, layout: Layout) -> Iterator[str]:
    some = int(((layout.points["n"] > 0) & (layout.points["not_ok"] > 0)).sum())
    if some:
        yield (
            f"At {_of(some, layout.points)} only some of the replicates have a result: the mean is of those that came"
            " through, and may flatter."
        )


def _intervals(run: Run, layout: Layout) -> Iterator[str]:
    points = layout.points
    if "output_throughput" not in points:
        return
    half = (points["output_throughput_ci_high"] - points["output_throughput"]) / points["output_throughput"]
    wide = half[half > WIDE]
    if len(wide):
        worst = points.iloc[int(half.argmax())]
        yield (
            f"The interval of output throughput is wider than ±{WIDE:.0%} at {_of(len(wide), points)} (widest"
            f" ±{wide.max():.0%}: {layout.describe(worst)}): more replicates narrow it, two to three most of all."
        )


def _quantiles(run: Run, layout: Layout) -> Iterator[str]:
    if run.ok.empty:
        return
    answered = (run.ok["num_requests"] - run.ok["num_failed"]).dropna()
    few = answered[answered < REQUESTS_FOR_P99]
    if len(few):
        yield (
            f"A p99 here is over as few as {int(few.min())} requests a trial, so all but the slowest of them: for a"
            f" real one set workload.num_requests={REQUESTS_FOR_P99} or more."
        )


def _lost_requests(run: Run, layout: Layout) -> Iterator[str]:
    share = (run.ok["num_failed"] / run.ok["num_requests"]).astype("float64")
    if (share > 0).any():
        trials = _trials(int((share > 0).sum()))
        yield f"In {trials} up to {share.max():.1%} of the requests failed; no latency counts them."


def _client(run: Run, layout: Layout) -> Iterator[str]:
    limited = int((run.trials["outcome"] == "client_limited").sum())
    if limited:
        yield f"In {_trials(limited)} the client was the bottleneck (client_limited): they are not results."
    busy = run.ok["client_cpu"].max()
    if pd.notna(busy) and busy > BUSY_CLIENT:
        yield f"The client used up to {busy:.0%} of a core: beyond this load it would limit what is measured."


def _shared_stamps(run: Run, layout: Layout) -> Iterator[str]:
    share = (run.ok["client_multi_event_reads"] / run.ok["output_tokens"]).astype("float64")
    many = int((share > SHARED_READS).sum())
    if many:
        yield (
            f"In {_trials(many)} the client read several token events at once, up to {share.max():.1%} as often as"
            " tokens came. They share a stamp, so ITL p99 is less exact than 0.1 ms: the engine writes in bursts, or"
            " the client was late; a core of its own for the client, or more client.processes, tells which."
        )


def _start_up(run: Run, layout: Layout) -> Iterator[str]:
    hidden = int(run.ok["startup_transient"].sum())
    if hidden:
        yield (
            f"In {_trials(hidden)} the start-up took a large part of the run: read the steady_* columns, or ask for"
            " more requests."
        )


def _rate(run: Run, layout: Layout) -> Iterator[str]:
    share = (run.ok["realised_rate"] / run.ok["offered_rate"]).dropna()
    short = int((share < SHORT_OF_RATE).sum())
    if short:
        yield (
            f"In {_trials(short)} requests left at as little as {share.min():.0%} of the rate"
            " asked for: at the concurrency cap, or past saturation, where latency grows with the length of the run."
        )


def _unsent(run: Run, layout: Layout) -> Iterator[str]:
    share = (1 - run.ok["client_sent"] / run.ok["client_offered"]).dropna()
    short = int((share > 0).sum())
    if short:
        yield (
            f"In {_trials(short)} up to {share.max():.0%} of the requests that came due were still waiting at the"
            " concurrency cap when the time was up: latencies are of those that were sent, users felt worse."
        )


def _agreement(run: Run, layout: Layout) -> Iterator[str]:
    by_line = layout.placed(run.ok).groupby("line", sort=False)
    lowest = by_line["agreement"].min()
    low = lowest[lowest < AGREEING].sort_values()
    if len(low):
        each = listed([f"{line} {share:.0%}" for line, share in low.items()])
        yield f"Greedy answers differ from the reference's, so these speeds are of other answers (agreement: {each})."
    if lowest.notna().any() and lowest.isna().any():
        reasons = by_line["agreement_reference"].first().fillna("no reason was noted")
        each = listed([f"{line} ({reasons[line]})" for line in lowest.index[lowest.isna()]])
        yield f"Whether the answers are the reference's is known of some only, and not of {each}."
    quantised = any(
        isinstance(facts, str) and json.loads(facts).get("quantization") for facts in run.ok["engine_facts"]
    )
    if lowest.notna().any() and quantised and _drawn(run):
        yield (
            "The weights are random, with wide margins between tokens: agreement tells a wrong engine from a right one,"
            " not what a quantisation costs. Real weights (model=hub, model=path) do."
        )


def _drawn(run: Run) -> bool:
    """Whether every model's weights are the project's own random ones."""
    configs = run.ok.drop_duplicates("model")["config"].dropna()
    return len(configs) > 0 and all("architecture" in json.loads(config).get("model", {}) for config in configs)


def _stamps(run: Run, layout: Layout) -> Iterator[str]:
    own = int(run.ok["client_stamp_source"].isin(["user", "mixed"]).sum())
    if own:
        yield (
            f"In {own} trial{'s' if own > 1 else ''} the client stamped arrivals itself, not the kernel: TTFT and ITL"
            " hold its own delays (client_loop_lag_p99). On Linux the kernel does."
        )


def _lengths(run: Run, layout: Layout) -> Iterator[str]:
    """Engines that stop at other places were not asked for the same work."""
    ok = layout.placed(run.ok)
    tokens = ok["output_tokens"] / (ok["num_requests"] - ok["num_failed"])
    by = [layout.trials.loc[ok.index, "panel"], *([ok[layout.x]] if layout.x else [])]
    means = tokens.astype("float64").groupby([*by, ok["line"]]).mean().dropna()
    if means.empty:
        return
    same_question = means.groupby(level=list(range(len(by))))
    worst = (same_question.max() / same_question.min()).max()
    if worst > UNEQUAL:
        yield (
            f"Asked the same, engines answered with up to {worst:.1f} times as many tokens as others: compare tokens/s"
            " and TPOT, not durations, requests/s or latencies to the end; workload.ignore_eos=true makes them equal."
        )


def _memory(run: Run, layout: Layout) -> Iterator[str]:
    measured = layout.placed(run.ok).dropna(subset=["memory_peak_bytes", "memory_label"])
    kinds = measured.groupby("memory_label", sort=False)["line"].unique()
    if len(kinds) > 1:
        told = {"gpu": "GPU memory", "process": "the memory of its processes", "reserved": "what it reserved"}
        each = [f"{told.get(str(kind), str(kind))} ({listed(lines)})" for kind, lines in kinds.items()]
        yield f"Memory is not of one kind, so not to be compared across them: {'; '.join(each)}."


def _baseline(run: Run, layout: Layout) -> Iterator[str]:
    compared = [name for name in layout.points if str(name).endswith("_vs_baseline")]
    if run.baseline and not layout.points[compared].notna().to_numpy().any():
        named = ", ".join(f"{key} = {value}" for key, value in run.baseline.items())
        yield (
            f"Nothing could be compared with the baseline ({named}): no result of it at the same workload and load, on"
            " the same kind of GPU."
        )


def _mixed(run: Run, layout: Layout) -> Iterator[str]:
    """What should be the same for all trials, or all of one engine, and is not."""
    commits = sorted(run.ok["commit"].dropna().unique())
    if len(commits) > 1:
        yield f"The trials were measured by {len(commits)} versions of this code ({', '.join(commits)})."
    if any(commit.endswith("+") for commit in commits):
        yield "This code had changes that are in no commit (+)."
    machines = {_machine(text) for text in run.ok["hardware"].dropna()}
    if len(machines) > 1:
        yield f"The trials ran on {len(machines)} kinds of machine ({'; '.join(sorted(machines))})."
    for backend, versions in run.ok.groupby("backend")["engine_version"]:
        known = sorted(versions.dropna().unique())
        if len(known) > 1:
            yield f"{backend} was measured in {len(known)} versions ({', '.join(known)})."


def _machine(text: str) -> str:
    hardware = json.loads(text)
    cores = hardware.get("cores")
    parts = [", ".join(hardware.get("gpus") or []), str(hardware.get("cpu", "")), f"{cores} cores" if cores else ""]
    return ", ".join(part for part in parts if part)


def _forms(run: Run, layout: Layout) -> Iterator[str]:
    lockstep = run.ok[run.ok["batch_size"].notna()]
    forms = lockstep.groupby("batch_form")["backend"].unique()
    if len(forms) > 1:
        told = {"list": "as one call with a list of prompts", "streams": "as simultaneous requests"}
        ways = [f"{', '.join(names)} {told.get(str(form), str(form))}" for form, names in forms.items()]
        yield f"Batches reached the engines in different ways: {'; '.join(ways)}."


def _of(count: int, points: pd.DataFrame) -> str:
    return f"{count:,} of {len(points):,} points"


def _trials(count: int) -> str:
    return f"{count:,} trial{'s' if count != 1 else ''}"
