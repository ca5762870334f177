"""Hits against false hits of the gateway's cache over thresholds, and how far what it serves is the engine's own text.

    python -m benchmarks.gateway_hits --to http://127.0.0.1:8000 --tokenizer FOLDER
        [--write docs/measurements/gateway.md] [--figure docs/images/gateway_hits.png]

The shipped paraphrases are asked once each, greedily, of a running engine: that is what a cache keeps of a question,
and what the engine would have said to another. All thresholds and orders follow from these answers and the vectors of
the default embedder. A hit is false if its answer is to a question of another cluster.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from benchmarks.documents import write_section
from sweep.gateway.caching.embedding import SHIPPED, load_embedder
from sweep.inputs.prompts import Paraphrases
from sweep.inputs.tokenizer import load_tokenizer

THRESHOLDS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
ORDERS = 20  # in which the questions come
TOKENS = 16  # of an answer
IN_FLIGHT = 4
TIMEOUT = 120.0  # s
MARKS = ("<!-- hits: begin -->", "<!-- hits: end -->")


class Hits(NamedTuple):
    """Of a threshold: pairs of a question and the one whose answer it got, and the number of requests."""

    threshold: float
    right: list[tuple[str, str]]
    false: list[tuple[str, str]]
    requests: int


class Answers:
    """The engine's greedy answers as tokens, by question."""

    def __init__(self, url: str, model: str, tokenizer: Path, questions: list[str]) -> None:
        limits = {"model": model, "temperature": 0, "max_tokens": TOKENS}
        encode = load_tokenizer(tokenizer).encode

        def answer(question: str) -> list[int]:
            reply = httpx.post(f"{url}/v1/completions", json=limits | {"prompt": question}, timeout=TIMEOUT)
            return list(encode(reply.raise_for_status().json()["choices"][0]["text"], add_special_tokens=False).ids)

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            self.tokens = dict(zip(questions, pool.map(answer, questions), strict=True))

    def agreement(self, pairs: list[tuple[str, str]]) -> float | None:
        """The share of positions at which the answer served is the engine's own, as in `served_agreement`."""
        both = [(self.tokens[question], self.tokens[served]) for question, served in pairs]
        positions = sum(max(len(own), len(other)) for own, other in both)
        equal = sum(a == b for own, other in both for a, b in zip(own, other, strict=False))
        return equal / positions if positions else None


def hits_at(threshold: float, orders: list[list[str]], meanings: dict[str, str], nearness: NDArray[np.float32]) -> Hits:
    """The hits of a cache that begins empty in each order."""
    row = {question: number for number, question in enumerate(meanings)}
    hits = Hits(threshold, [], [], sum(map(len, orders)))
    for order in orders:
        cached: list[str] = []
        for question in order:
            similarities = nearness[row[question], [row[other] for other in cached]]
            if len(cached) and similarities.max() > threshold:
                served = cached[int(similarities.argmax())]
                (hits.right if meanings[served] == meanings[question] else hits.false).append((question, served))
            else:
                cached.append(question)
    return hits


def table(rows: list[Hits], answers: Answers) -> list[str]:
    lines = ["| threshold | hits | false hits | false among hits | served text equal | of right hits | of false hits |"]
    lines.append("|---|---|---|---|---|---|---|")
    for hits in rows:
        served = [*hits.right, *hits.false]
        shares = [len(served) / hits.requests, len(hits.false) / hits.requests]
        agreements = [answers.agreement(pairs) for pairs in (served, hits.right, hits.false)]
        cells = [f"{hits.threshold:g}", *(f"{share:.1%}" for share in shares)]
        cells.append(f"{len(hits.false) / max(len(served), 1):.0%}")
        cells += ["–" if agreement is None else f"{agreement:.0%}" for agreement in agreements]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(rows: list[Hits], path: Path) -> None:
    """Hits against false hits, a point for each threshold."""
    mpl.use("Agg")
    from matplotlib import pyplot

    false = [100 * len(each.false) / each.requests for each in rows]
    served = [100 * (len(each.right) + len(each.false)) / each.requests for each in rows]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(false, served, "o-")
    for each, x, y in zip(rows, false, served, strict=True):
        axes.annotate(f"{each.threshold:g}", (x, y), textcoords="offset points", xytext=(6, -10))
    limit = max(served)
    axes.plot([0, limit], [0, limit], ":", color="grey")
    axes.text(0.72 * limit, 0.66 * limit, "all hits false", color="grey")
    axes.set(xlabel="false hits, % of requests", ylabel="hits, % of requests", xlim=(0, None), ylim=(0, None))
    axes.set_title("Cache hits by threshold, shipped paraphrases")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="URL of an engine")
    parser.add_argument("--model", default="smollm2", help="as the engine calls it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the model's")
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    workload = Paraphrases(name="paraphrases", output_tokens=1)
    meanings, embedder = workload.meanings(), load_embedder(SHIPPED)
    vectors = np.array([embedder.embed(question) for question in meanings])
    orders = [[str(each.prompt) for each in workload.requests(None, len(meanings), seed)] for seed in range(ORDERS)]
    rows = [hits_at(threshold, orders, meanings, vectors @ vectors.T) for threshold in THRESHOLDS]
    lines = table(rows, Answers(options.to.rstrip("/"), options.model, options.tokenizer, list(meanings)))
    print("\n".join(lines))
    if options.write:
        write_section(options.write, MARKS, lines)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
