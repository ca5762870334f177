"""Writes answers as sentences: first one that covers all answers, then one per task."""

import math
from collections import Counter
from collections.abc import Sequence

from analysis.answers.task_answer import RankedConfiguration, Remedy, TaskAnswer
from analysis.point_names import listed
from analysis.quantities import LabelledColumn
from analysis.statistics.comparison import MARGIN
from analysis.statistics.intervals import Estimate
from sweep.base.wording import count, duration_text, number

MOST_IN_SENTENCE = 3  # configurations that a sentence names
FEWEST_ADVISERS = 3  # launches needed for the advice to hold nine times in ten
BY_LAUNCHES = "*"  # after an interval


def lead(answers: Sequence[TaskAnswer]) -> str:
    """Return the sentence that covers all answers: what leads, and on which tasks; empty if there are no answers."""
    if len(answers) == 1:
        return sentence(answers[0])
    contested = [answer for answer in answers if len(answer.meeting) > 1]
    alone = Counter(each.meeting[0].name for each in answers if len(each.meeting) == 1 < len(each.configurations))
    unmet = sum(not answer.meeting for answer in answers if answer.judged)
    unranked = sum(not answer.judged for answer in answers)
    parts = [_contested(contested, len(answers) - alone.total() - unmet - unranked)] if contested else []
    parts += [f"{name} alone meets the SLO at {n} of {count(len(answers), 'task')}" for name, n in alone.items()]
    if answers and not parts and not unmet and not unranked:
        parts.append(f"At each of {count(len(answers), 'task')} a single configuration can be compared")
    if unmet:
        parts.append(f"at {unmet} of {count(len(answers), 'task')} none meets the SLO")
    if unranked:
        parts.append(f"at {unranked} of {count(len(answers), 'task')} none can be ranked")
    text = "; ".join(parts) + caveats(answers)
    return f"A{text[1:]}" if text.startswith("at ") else text


def _contested(contested: Sequence[TaskAnswer], total: int) -> str:
    names = list(dict.fromkeys(each.name for answer in contested for each in answer.meeting))
    wins = Counter(answer.meeting[0].name for answer in contested if answer.decided)
    where = count(len(contested), "task")
    others = f" ({total - len(contested)} more with nothing to compare)" if len(contested) < total else ""
    quantities = listed(list(dict.fromkeys(answer.criterion.quantity.in_sentence for answer in contested)))
    if not wins and len(contested) == 1:
        tied = [contested[0].meeting[0].name, *(each.name for each in contested[0].tied)]
        subject = " and ".join(tied) if len(tied) <= MOST_IN_SENTENCE else f"{len(tied)} configurations"
        return f"{subject} tie at {contested[0].criterion.title} in {quantities}{others}"
    if not wins:
        few = len(names) <= 2
        subject = " and ".join(names) if few else f"The {len(names)} configurations"
        verb = "had too few launches to tell which leads at any of"
        if any(math.isfinite(each.low) for answer in contested for each in answer.tied):
            # Two of three may be equal and far ahead of the third.
            subject = subject if few else f"None of {len(names)} configurations"
            verb = "tie at" if few else "leads at any of"
        elif contested[0].criterion.quantity.column == "capacity":
            verb = "were searched for too short to tell which leads at any of"
        return f"{subject} {verb} {where} in {quantities}{others}"
    named = [f"{name} is the {_adjective(contested, name)} at {n}" for name, n in wins.most_common(MOST_IN_SENTENCE)]
    undecided = len(contested) - wins.total()
    rest = f"; {undecided} {'is a tie' if undecided == 1 else 'are ties'}" if undecided else ""
    more = f" and {count(len(wins) - MOST_IN_SENTENCE, 'other')}" if len(wins) > MOST_IN_SENTENCE else ""
    return f"{', '.join(named)}{more} of {where}{rest}{others}"


def _adjective(contested: Sequence[TaskAnswer], name: str) -> str:
    return next(each.criterion.adjective for each in contested if each.decided and each.meeting[0].name == name)


def sentence(answer: TaskAnswer) -> str:
    """Return the answer for a task: value, interval, headroom, runner-up and, for a tie, the remedy."""
    best = answer.best
    text = _unmet(answer) if best is None else _met(answer, best)
    return f"{answer.criterion.title}: {text}{caveats([answer])}"


def caveats(answers: Sequence[TaskAnswer]) -> str:
    """Return which configurations are excluded and why, and the codes of warnings about the rest."""
    shorter = list(dict.fromkeys(name for answer in answers for name in answer.shorter))
    barred = [f"{each.full_name} ({', '.join(each.codes)})" for answer in answers for each in answer.barred]
    named = [each for answer in answers for each in (*answer.configurations[:1], *(answer.tied or answer.meeting[1:2]))]
    codes = dict.fromkeys(code for each in named for code in each.codes)
    # The first is left out: its later trials are dropped if it has won.
    dropped = Counter(each.full_name for answer in answers for each in answer.configurations[1:] if each.dropped)
    parts = {"not compared, since answers were shorter": shorter, "not ranked": list(dict.fromkeys(barred))}
    of_answers = f" of {count(len(answers), 'task')}"
    parts["dropped by the race"] = [
        f"{name} ({times}{of_answers})" if len(answers) > 1 else name for name, times in dropped.items()
    ]
    parts["warnings"] = list(codes)
    return "".join(f"; {label}: {listed(items, MOST_IN_SENTENCE)}" for label, items in parts.items() if items)


def measured_text(answers: Sequence[TaskAnswer]) -> str:
    """`Measured 2026-11-25 13:05 to 2026-11-26 01:10 UTC`: the time range of the trials' starts; empty if unknown."""
    times = [time for one in answers for each in (*one.configurations, *one.barred) for time in each.measured or ()]
    first, last = (end(times, default="")[:16].replace("T", " ") for end in (min, max))
    return f"Measured {first}" + (f" to {last}" if last != first else "") + " UTC" if times else ""


def _met(answer: TaskAnswer, best: RankedConfiguration) -> str:
    criterion = answer.criterion
    shown = f"{best.full_name} ({figure(answer, best)}{_headroom(best)})"
    if len(answer.meeting) == 1:
        only = f"alone meets {_slo(answer)} of {len(answer.configurations)}" if len(answer.configurations) > 1 else ""
        alone = "is the only one compared" if answer.shorter or answer.barred else "was measured alone"
        only = only or (f"meets {_slo(answer)}" if criterion.bounds else alone)
        return f"{shown} {only}"
    if answer.decided:
        runner_up = answer.meeting[1]
        within = f" within {_slo(answer)}" if criterion.bounds else ""
        return (
            f"{shown} is the {criterion.adjective}{within}; "
            f"{advantage(answer, runner_up)} ahead of {runner_up.full_name} ({figure(answer, runner_up)})"
        )
    names = [f"{each.full_name} ({figure(answer, each)})" for each in answer.tied[:MOST_IN_SENTENCE]]
    more = f" and {len(answer.tied) - MOST_IN_SENTENCE} more" if len(answer.tied) > MOST_IN_SENTENCE else ""
    equal = is_equal(answer)
    verdict = f"is equal within {MARGIN:.0%} to" if equal else "ties with"
    decisive = f": {remedy_text(answer.suggested)}" if answer.suggested and not equal else ""
    return f"{shown} {verdict} {', '.join(names)}{more}{decisive}"


def _unmet(answer: TaskAnswer) -> str:
    if not answer.configurations:
        return "no configuration can be ranked"
    if not answer.judged:
        return f"too few requests to judge {_slo(answer)}"
    closest, total = answer.configurations[0], len(answer.configurations)
    none = f"none of {count(total, 'configuration')} meets {_slo(answer)}"
    if closest.tightest is None or closest.latency is None or math.isinf(closest.headroom):
        return f"{none}: too many requests failed, or the latency is unknown"
    bound = closest.tightest.quantity
    return (
        f"{none}; the closest is {closest.full_name}: {bound.short} "
        f"{bound.shown(closest.latency.value)} {bound.unit}, {-closest.headroom:.0%} over"
    )


def figure(answer: TaskAnswer, configuration: RankedConfiguration) -> str:
    """Return a value as `538 tokens/s, 524–552`, or with `524–552 over launches` if requests give no interval."""
    quantity = answer.criterion.quantity
    ends = range_text(configuration.figure, quantity, " over launches")
    return f"{quantity.shown(configuration.figure.value)} {quantity.unit}" + (f", {ends}" if ends else "")


def range_text(figure: Estimate, labelled: LabelledColumn, by_launches: str = BY_LAUNCHES) -> str:
    """Return an interval, e.g. `46.0–61.9`, marked if it comes from the launches' values; empty if missing."""
    ends = f"{labelled.shown(figure.low)}–{labelled.shown(figure.high)}"
    return "" if math.isnan(figure.low) else ends + by_launches * figure.by_launches


def advantage(answer: TaskAnswer, configuration: RankedConfiguration) -> str:
    """Return how many times better the best is than `configuration`, e.g. `1.42× (1.31 to 1.53)`."""
    better_higher = answer.criterion.quantity.better == "higher"
    ends = [configuration.ratio, configuration.low, configuration.high]
    return times_text(*(ends if better_higher else [1 / end for end in (ends[0], ends[2], ends[1])]))


def times_text(ratio: float, low: float, high: float) -> str:
    """Return a ratio with its interval, if any. The upper end may be unknown."""
    ends = f"{number(low)} to {number(high)}" if math.isfinite(high) else f"at least {number(low)}"
    return f"{number(ratio)}×" + ("" if math.isnan(low) else f" ({ends})")


def remedy_text(remedy: Remedy) -> str:
    """Describe a remedy: how many more launches would decide, for which difference, in how much time."""
    if not remedy.launches:
        needed = f"replicates={remedy.replicates} with relaunch=per_replicate would show it"
        return f"one launch of each configuration does not show how much launches differ; {needed}"
    minutes = "" if math.isnan(remedy.minutes) else f", about {duration_text(60 * remedy.minutes)}"
    few = remedy.replicates - remedy.launches < FEWEST_ADVISERS
    doubt = "; this few launches hardly show the spread, so more may be needed" if few else ""
    more = "1 more launch" if remedy.launches == 1 else f"{remedy.launches:,} more launches"
    return f"{more} of each would detect a difference of {remedy.size}{minutes} (replicates={remedy.replicates}){doubt}"


def tie_advice(answers: Sequence[TaskAnswer]) -> str:
    """Return in a few words what would decide the nearest tie of several tasks; empty if nothing within reach would."""
    ties = [(answer, answer.suggested) for answer in answers if answer.tied and not is_equal(answer)]
    within_reach = [(answer, remedy) for answer, remedy in ties if remedy]
    if len(answers) < 2 or not within_reach:
        return ""
    nearest, remedy = min(within_reach, key=lambda tie: tie[1].replicates)
    if not remedy.launches:
        return f"replicates={remedy.replicates} with relaunch=per_replicate shows how much launches differ"
    time = "" if math.isnan(remedy.minutes) else f" (about {duration_text(60 * remedy.minutes)} more)"
    return f"replicates={remedy.replicates}{time} would detect {remedy.size} at {nearest.criterion.title}"


def is_equal(answer: TaskAnswer) -> bool:
    """Return whether all tied configurations are surely as good as the best, within the margin."""
    return all(each.low > 1 - MARGIN and each.high < 1 + MARGIN for each in answer.tied)


def _headroom(configuration: RankedConfiguration) -> str:
    """Return the headroom, e.g. `, headroom 12%: TTFT p99 176 ms`, and whether its interval exceeds the bound."""
    if configuration.tightest is None or configuration.latency is None:
        return ""
    bound, latency = configuration.tightest.quantity, configuration.latency
    text = f", headroom {configuration.headroom:.0%}: {bound.short} {bound.shown(latency.value)} {bound.unit}"
    if math.isnan(latency.high):
        return f"{text}, without an interval"
    return text if configuration.surely_meets else f"{text}, but its interval reaches {bound.shown(latency.high)}"


def _slo(answer: TaskAnswer) -> str:
    """Return the SLO as text, e.g. `TTFT p99 ≤ 200 ms and TPOT p99 ≤ 20.0 ms`."""
    return " and ".join(bound.text for bound in answer.criterion.bounds)
