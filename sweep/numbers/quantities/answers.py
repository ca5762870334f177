"""Answers that are fake, or unlike the trial's other answers, judged by their text, length and timing."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, as_floats, blocks, token_chunks, token_times
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import engine_answered, succeeded

LENGTH_TOLERANCE = 0.1  # share of the requested tokens, but at least one token: larger deviations are odd
MERGED = 1.05  # tokens per event
ODD_MERGED = 2.0  # multiple of the other answers' tokens per event
EXTRA_TOKENS = 4  # minimum excess of tokens over events: an honest answer's last event may contain two
MOST_NAMES = 8  # maximum number of models in a column
QUICK = 0.05  # share of the time that other answers take for as many tokens
LEAST_TIME = 0.01  # s; if other answers take less, a late reader may merge events
CANNED = 0.5  # minimum share of repeated answers at which all of them are fake
FEWEST_ODD = 2  # a single odd answer may be an accident
FEWEST_GAPS = 7  # minimum gaps of an answer from which their shape is judged
SMALL_GAP = 0.1  # share of the answer's mean gap
SMALL_GAPS = 0.3  # share of small gaps above which events were sent in bursts
STREAMING = 0.1  # share of an answer's time: a shorter stream was held back, unless others streamed at that time
SOMEONE_STREAMS = 0.5  # share of the time with requests in flight
FIRST_IS_EARLY = 0.25  # share of the gap after it
SAME_SUFFIX = r"[-:@](latest|\d{4}[\d-]*)"  # end of a model's name: the version behind an alias


@quantity(unit="share", kind="validity", better="lower")
def odd_answer_share(
    records: Records, mask: Mask, exact_length: bool, unlike_prompts: bool, endpoint: bool
) -> float | None:
    """share of the successful answers that are unlike the trial's other answers. An odd answer has over twice the
    others' tokens per event, or took less than 5% of the others' time per token. Or, with ignore_eos, its length is
    over 10% off the requested tokens. Or, at an endpoint, it repeats another answer's text. A repeated text counts only
    if half of all answers repeat a text, or if it took less than half the time of the fastest tenth of the unique
    answers. A single odd answer is not counted.

    Texts with fewer than about 8 different words, and texts for equal prompts, are not compared.
    """
    chosen = np.flatnonzero(mask & engine_answered(records))
    if not chosen.size:
        return None
    first, last = (times[chosen] for times in token_times(records))
    tokens, requested, texts = (
        np.asarray(column, np.float64)[chosen]
        for column in (records.streamed_tokens, records.asked_output_tokens, records.text_hash)
    )
    tokens[tokens == UNKNOWN] = np.nan
    events, counted = token_chunks(records)[chosen], ~np.isnan(tokens)
    odd = np.zeros(chosen.size, np.bool_)
    if counted.any():
        per_event = tokens / events
        odd |= (per_event > ODD_MERGED * np.median(per_event[counted])) & (tokens - events >= EXTRA_TOKENS)
    if (several := counted & (tokens >= EXTRA_TOKENS)).any():
        pace = np.median((last - first)[several] / (tokens[several] - 1))
        expected = pace * (tokens - 1)
        odd |= several & (expected > LEAST_TIME) & (last - first < QUICK * expected)
    if exact_length:
        odd |= counted & (requested != UNKNOWN) & has_other_length(tokens, requested)
    if endpoint and unlike_prompts:
        odd |= _repeated(texts, last)
    return float(odd.mean()) if odd.sum() >= FEWEST_ODD else 0.0


def has_other_length(tokens: Floats, requested: Floats) -> Mask:
    """Return a mask of answers whose length differs from the request by more than the tolerance. Same shape."""
    return np.asarray(np.abs(tokens - requested) > np.maximum(1, LENGTH_TOLERANCE * requested))


def _repeated(texts: Floats, last: Floats) -> Mask:
    """Return a mask of answers with a repeated text, if most answers repeat one or they are faster than others."""
    _, group, count = np.unique(texts, return_inverse=True, return_counts=True)
    same = (texts != UNKNOWN) & (count[group] > 1)
    if same.mean() >= CANNED or same.all():
        return np.asarray(same)
    return np.asarray(same & (last < np.quantile(last[~same], 0.1) / 2))


@quantity(unit="", kind="validity", type=str, label="Served model")
def served_model(records: Records, mask: Mask) -> str | None:
    """the models named in the answers: up to eight names, and the number of further models."""
    answered = np.flatnonzero(mask & succeeded(records))
    names = sorted({records.served_model[index] or "" for index in answered} - {""})
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*names[:MOST_NAMES], *more]) or None


@quantity(unit="share", kind="validity", better="lower")
def other_model_share(records: Records, mask: Mask, asked_model: str | None) -> float | None:
    """share of an endpoint's answers that name a model other than the requested model, or other than the model that
    most answers name; a path before the name, and a date or `latest` after it, are ignored.
    """
    answered = np.flatnonzero(mask & succeeded(records))
    pairs = Counter((records.model[index] or asked_model, records.served_model[index]) for index in answered)
    named = {(requested, name): count for (requested, name), count in pairs.items() if requested and name}
    usual = {requested: name for (requested, name), _ in sorted(named.items(), key=lambda item: item[1])}
    other = sum(
        count
        for (requested, name), count in named.items()
        if name != usual[requested] or not _is_model(name, requested)
    )
    return other / sum(named.values()) if named and asked_model else None


def _is_model(name: str, requested: str) -> bool:
    names = (text.lower().rsplit("/", 1)[-1].removesuffix(".gguf") for text in (name, requested))
    short, long = sorted((re.sub("-latest$", "", bare) for bare in names), key=len)
    return long.startswith(short) and bool(re.fullmatch(f"({SAME_SUFFIX})?", long[len(short) :]))


@quantity(unit="", kind="validity", better="lower")
def first_gap_ratio(records: Records, mask: Mask) -> float | None:
    """median time from the first to the second arrival / median time between later arrivals; null unless the time
    to the first arrival is at most a quarter of the gap between the first two arrivals.
    """
    chosen = mask & engine_answered(records)
    gaps = _gap_shapes(records, chosen)
    several = chosen & (gaps.number > 1)
    first = token_times(records)[0][several]
    ahead, later = gaps.first[several], ((gaps.total - gaps.first) / np.maximum(gaps.number - 1, 1))[several]
    if not several.any() or np.median(later) <= 0 or np.median(first / np.maximum(ahead, 1e-9)) > FIRST_IS_EARLY:
        return None
    return float(np.median(ahead) / np.median(later))


class GapShapes(NamedTuple):
    """Statistics of the gaps between arrivals in each answer, in s except counts. Each has shape (requests,)."""

    number: Floats
    total: Floats
    first: Floats
    largest: Floats
    small: Floats  # number of gaps below a tenth of the mean of all but the largest gap
    small_total: Floats


def _gap_shapes(records: Records, chosen: Mask) -> GapShapes:
    shapes = GapShapes(*(np.zeros(len(records)) for _ in GapShapes._fields))
    for block in blocks(records, chosen):
        request, gaps = block.request[1:][block.inside()], block.gaps() / 1e6
        if not gaps.size:
            continue
        begins = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
        answer = request[begins]
        shapes.number[answer] = np.diff(np.r_[begins, gaps.size])
        shapes.total[answer], shapes.first[answer] = np.add.reduceat(gaps, begins), gaps[begins]
        shapes.largest[answer] = np.maximum.reduceat(gaps, begins)
        mean = (shapes.total - shapes.largest)[request] / np.maximum(shapes.number[request] - 1, 1)
        small = gaps < SMALL_GAP * mean
        shapes.small[answer] = np.add.reduceat(small, begins, dtype=np.float64)
        shapes.small_total[answer] = np.add.reduceat(gaps * small, begins)
    return shapes


def held_back(records: Records, chosen: Mask) -> Mask:
    """Return a mask of answers that were held back and then sent event by event, at once or in bursts.

    Shape (requests,). An engine reads a prompt's tokens at least twice as fast as it writes tokens. So its pauses
    last at most half its gap between tokens, per prompt token in flight. A buffer's pauses are longer.
    """
    gaps = _gap_shapes(records, chosen)
    chosen = chosen & (gaps.number >= FEWEST_GAPS)
    if not chosen.any():
        return chosen
    sent, (first, last) = as_floats(records.sent), token_times(records)
    busy = _union(sent[chosen], (sent + last)[chosen])
    prompt = np.asarray(records.input_tokens)
    prompt = np.where(prompt == UNKNOWN, np.asarray(records.prompt_words), prompt) + np.asarray(records.hidden_tokens)
    reading = prompt * max(1.0, last[chosen].sum() / busy if busy else 1.0) / 2  # time to read the prompts, in gaps
    later_gaps, small_gaps = np.maximum(gaps.number - 1, 1), np.maximum(gaps.small, 1)
    waits = (gaps.total - gaps.small_total) / np.maximum(gaps.number - gaps.small, 1)
    bursts = (gaps.small > SMALL_GAPS * later_gaps) & (waits > reading * gaps.small_total / small_gaps)
    active = gaps.total - gaps.largest
    at_once = (active < STREAMING * last) & (first > reading * active / later_gaps)
    streaming = _union((sent + first)[chosen], (sent + first + active)[chosen])
    return np.asarray(chosen & (bursts | (at_once & (streaming < SOMEONE_STREAMS * busy))))


def _union(begins: Floats, ends: Floats) -> float:
    """Return the total length of the union of intervals, in s."""
    order = np.argsort(begins)
    begins, reached = begins[order], np.maximum.accumulate(ends[order])
    return float((reached - np.maximum(begins, np.r_[-np.inf, reached[:-1]])).clip(0).sum())


def tokens_are_stamped(records: Records) -> bool:
    """Return whether the number of tokens in each arrival is known.

    It is unknown if only the final usage reports tokens, with more tokens than events, and no tokenizer has counted the
    text: the tokens may be hidden, or merged into one event.
    """
    silent = np.fromiter((source == "final usage" for source in records.token_source), np.bool_, len(records))
    silent &= succeeded(records) & (np.asarray(records.streamed_tokens) != UNKNOWN)
    if not silent.any() or np.any(np.asarray(records.recounted_tokens) != UNKNOWN):
        return True
    tokens, events = np.asarray(records.streamed_tokens)[silent].sum(), token_chunks(records)[silent].sum()
    return bool(tokens <= MERGED * events + silent.sum())  # an end token is counted, but has no event
