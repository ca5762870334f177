"""Answers as tables and files: a frame of all candidates, and Markdown, CSV, Parquet, LaTeX and JSON of it."""

import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis.answers.question import Candidate, TaskAnswer
from analysis.answers.sentences import advantage, figure, lead, sentence
from sweep.base.wording import spreadsheet_cell

ANSWER_HEADINGS = ("question", "configuration", "load", "figure", "headroom", "best over it", "verdict")
LATEX_SPECIAL = {"\\": r"\textbackslash{}", **{each: f"\\{each}" for each in "&%$#_{}"}}
LATEX_SPECIAL |= {"±": r"$\pm$", "×": r"$\times$", "≤": r"$\le$", "—": "---"}


def standing_text(candidate: Candidate) -> str:
    """`best`, `not told apart from the best`, `behind` or `misses the SLO`."""
    return str(candidate.standing) if candidate.meets else "misses the SLO"


def answer_cells(answer: TaskAnswer, candidate: Candidate) -> tuple[str, ...]:
    """The cells of a candidate, as ANSWER_HEADINGS."""
    headroom = "—" if not math.isfinite(candidate.headroom) else f"{candidate.headroom:.0%}"
    ratio = "—" if math.isnan(candidate.ratio) or candidate is answer.best else advantage(answer, candidate)
    return (
        answer.question.title,
        candidate.name,
        candidate.load or "—",
        figure(answer, candidate),
        headroom,
        ratio,
        standing_text(candidate),
    )


def answer_records(answers: Sequence[TaskAnswer]) -> list[dict[str, Any]]:
    """One record a candidate, in data units; null where there is no figure."""
    return [
        _candidate_record(answer, candidate, place)
        for answer in answers
        for place, candidate in enumerate(answer.candidates)
    ]


def _candidate_record(answer: TaskAnswer, candidate: Candidate, place: int) -> dict[str, Any]:
    remedy = answer.remedy if place == 0 else None
    numbers = {
        "value": candidate.figure.value,
        "ci_low": candidate.figure.low,
        "ci_high": candidate.figure.high,
        "new_launch_low": candidate.figure.new_low,
        "new_launch_high": candidate.figure.new_high,
        "headroom": candidate.headroom,
        "best_over_it": candidate.ratio,
        "best_over_it_ci_low": candidate.low,
        "best_over_it_ci_high": candidate.high,
        "more_minutes": remedy.minutes if remedy else math.nan,
    }
    return {
        "question": answer.question.title,
        "run": candidate.run,
        "rank": place + 1,
        "configuration": candidate.name,
        "load": candidate.load or None,
        "column": answer.question.quantity.column,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "bound": candidate.tightest.text if candidate.tightest else None,
        "n": candidate.figure.n,
        "by_launches": candidate.figure.by_launches,
        "verdict": standing_text(candidate),
        "more_launches": remedy.launches if remedy and remedy.launches else None,
        "sentence": sentence(answer) if place == 0 else None,
    }


def lines(answers: Sequence[TaskAnswer]) -> list[str]:
    """The lead, then a sentence for each question, unless that is the lead."""
    every = [lead(answers), *map(sentence, answers)]
    return list(dict.fromkeys(filter(None, every))) or ["no configuration has a result"]


def frame(answers: Sequence[TaskAnswer]) -> pd.DataFrame:
    """The records as a frame, whose numbers are numbers also where all are missing."""
    return pd.DataFrame(answer_records(answers)).convert_dtypes() if answers else pd.DataFrame()


def answers_markdown(answers: Sequence[TaskAnswer]) -> bytes:
    """The sentences, then the table."""
    head, *rest = lines(answers)
    rows = [answer_cells(answer, candidate) for answer in answers for candidate in answer.candidates]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in [ANSWER_HEADINGS, *rows]]
    table.insert(1, f"|{'---|' * len(ANSWER_HEADINGS)}")
    parts = [f"**{head}**", "", *(f"- {line}" for line in rest), *([""] if rest else []), *table]
    return ("\n".join(parts) + "\n").encode()


def latex(answers: Sequence[TaskAnswer]) -> bytes:
    """The table as a tabular, its caption's sentence before it as a comment."""
    rows = [answer_cells(answer, candidate) for answer in answers for candidate in answer.candidates]
    body = [" & ".join(map(_latex_text, row)) + r" \\" for row in rows]
    head = " & ".join(map(_latex_text, ANSWER_HEADINGS)) + r" \\"
    parts = [f"% {lines(answers)[0]}", rf"\begin{{tabular}}{{{'lllrrrl'}}}", r"\hline", head, r"\hline", *body]
    return ("\n".join([*parts, r"\hline", r"\end{tabular}"]) + "\n").encode()


def _latex_text(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def as_json(answers: Sequence[TaskAnswer]) -> bytes:
    """The lead, and each question with its sentence and its candidates."""
    questions = [
        {"question": answer.question.title, "sentence": sentence(answer), "candidates": answer_records([answer])}
        for answer in answers
    ]
    return (json.dumps({"lead": lead(answers), "answers": questions}, indent=2) + "\n").encode()


def _parquet(answers: Sequence[TaskAnswer]) -> bytes:
    buffer = io.BytesIO()
    frame(answers).to_parquet(buffer, index=False)
    return buffer.getvalue()


ANSWER_FORMATS: dict[str, Callable[[Sequence[TaskAnswer]], bytes]] = {
    "text": lambda answers: ("\n".join(lines(answers)) + "\n").encode(),
    "markdown": answers_markdown,
    "csv": lambda answers: frame(answers).map(spreadsheet_cell).to_csv(index=False).encode(),
    "parquet": _parquet,
    "latex": latex,
    "json": as_json,
}
"""The contents of a file of each format."""

ANSWER_COLUMNS = {
    "question": ("", "the task, and the load where it is a part of the question"),
    "run": ("", "name of the run that the configuration is of"),
    "rank": ("", "place among the configurations of its question; 1 is the best"),
    "configuration": ("", "the engine, with the settings that tell it from the others"),
    "load": ("", "the load at which it is taken, where an SLO lets it choose"),
    "column": ("", "the column of trials.parquet by which the question is decided"),
    "value": ("of `column`", "its mean over the replicates"),
    "ci_low, ci_high": ("of `column`", "95 % interval of these launches"),
    "new_launch_low, new_launch_high": ("of `column`", "95 % interval of the mean of further launches"),
    "headroom": ("share", "what is left of the tightest bound of the SLO; below 0 over it"),
    "best_over_it": ("", "the best's figure over its own, as it is: of a cost, 0.8 is 20 % less"),
    "best_over_it_ci_low, best_over_it_ci_high": ("", "95 % interval of that ratio, for all rivals at once"),
    "more_minutes": ("min", "of the launches that would tell; of the best alone"),
    "bound": ("", "the tightest bound of the SLO"),
    "n": ("", "replicates"),
    "by_launches": ("", "whether the intervals are from the launches' own figures: the requests give none"),
    "verdict": ("", "best, behind, not told apart from the best, misses the SLO, …"),
    "more_launches": ("", "launches of each that would tell, nine times in ten; of the best alone"),
    "sentence": ("", "the answer; of the best alone"),
}
"""The columns of `sweep summary --format csv|parquet` and the candidates of `json`, for docs/columns.md."""
