"""The report's figure, table and controls, in a real Chromium."""

import csv
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest

import analysis
from analysis.report.html import html, write_all
from analysis.report.several import write_several
from analysis.results import RunResults, open_results
from sweep.disk.compaction import compact
from tests.explain.test_explain import factorial
from tests.support import browser as chromium
from tests.support.browser import Browser, opened_browser
from tests.support.results import run_of, trial
from tests.support.synthetic_run import make_run
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or "-")]
RIGHT, ENTER = "\ue014", "\ue007"
HOSTILE = "</script><img src=x onerror=alert(1)>"
# For the answer to one event with 2,000 points: generous, as other tests use the machine meanwhile. The times that are
# printed are the measurement; docs/report.md says what an idle machine takes.
MOST_SECONDS = 5.0

# Sets a control as a person does: its value or check mark, then the event.
SET = """
const [id, value] = arguments, control = document.getElementById(id);
if (typeof value === "boolean") control.checked = value; else control.value = value;
const event = ["range", "search"].includes(control.type) ? "input" : "change";
control.dispatchEvent(new Event(event, {bubbles: true}));
"""
STATE = "const c = document.getElementById(arguments[0]); return c.type === 'checkbox' ? c.checked : c.value"
ROWS = """return [...document.querySelectorAll("#points-table tbody tr")].map(row =>
    [...row.cells].map(cell => cell.firstChild?.nodeType === 3 ? cell.firstChild.textContent : cell.textContent))"""
TOP_OF_WHISKERS = """return Math.min(...[...document.querySelectorAll("#plot .whiskers")]
    .flatMap(path => path.getAttribute("d").match(/[MV][-\\d.,]+/g) ?? [])
    .map(step => Number(step.slice(1).split(",").at(-1))))"""
FADED_WHISKERS = "return [...document.querySelectorAll('#plot .faded-whiskers')].some(path => path.getAttribute('d'))"
WHISKERS = "return [...document.querySelectorAll('.whiskers:not(.faded-whiskers)')].map(one => one.getAttribute('d'))"
LINKS = "return [...document.querySelectorAll('#details .scroll a')].map(link => link.getAttribute('href'))"
COPY_LABEL = "return document.getElementById('copy-link').textContent"
LINKED = "return [...document.querySelectorAll('nav a, a.mark')].every(link => document.querySelector(link.hash))"
ROW_COUNT = "document.querySelectorAll('#points-table tbody tr').length"
ON_A_PHONE = """return [...document.querySelectorAll("#figures figure")].filter(figure => {
    const svg = figure.querySelector("svg.phone"), box = node => node.getBoundingClientRect();
    const places = [...svg.querySelectorAll("[id*=-axes_]")].map(box).filter(place => place.height);
    const letters = Math.min(...[...svg.querySelectorAll("text")].map(text => box(text).height));
    return letters < 8 || figure.scrollWidth > figure.clientWidth || box(figure.querySelector("svg")).height
        || places.some((place, n) => n && place.top < places[n - 1].bottom); }).map(figure => figure.id)"""
MARKS = """return [...document.querySelectorAll("#plot .marks, #plot .faded")]
    .reduce((sum, path) => sum + (path.getAttribute("d").match(/M/g) ?? []).length, 0)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened_browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.size(1280, 900)
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "throughput_bound"
    make_run(folder, replicates=2, batches=(1, 8, 32), workloads=("qa", "reasoning"))
    return written(folder)


def written(folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(html(open_results(folder), []))
    return path


def text(browser: Browser, selector: str) -> str:
    return str(browser.run("return document.querySelector(arguments[0]).innerText", selector))


def test_nothing_is_fetched_and_nothing_is_wrong(browser: Browser, page: Path) -> None:
    browser.log("browser"), browser.log("performance")
    browser.open(page)
    for control, value in {"y": "cost_per_million_tokens", "x": "size", "ttft-slider": 90, "filter": "v"}.items():
        browser.run(SET, control, value)
    assert browser.log("browser") == []
    assert fetched(browser) <= {page.as_uri(), "about:blank"}
    browser.run(
        "fetch('http://127.0.0.1:9/').catch(() => 0); const s = document.createElement('script');"
        "s.textContent = 'window.injected = 1'; document.body.append(s)"
    )
    assert browser.run("return window.injected") is None
    assert all("Content Security Policy" in entry["message"] for entry in browser.log("browser"))


def fetched(browser: Browser) -> set[str]:
    """The addresses that were asked for since the last call, without their fragments."""
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url.partition("#")[0] for url in asked}


FLAG = "backend.flags.max-num-seqs"
FIGURES = {  # of each kind of run, some that no other has
    "engines": {"output_throughput", "ratio_forest", "latency_distribution", "throughput_timeline", "memory_timeline"},
    "factorial": {"two_knobs", "waterfall", "ratio_forest"},
    "ladder": {"waterfall"},
    "flag": {"output_throughput"},
}


def one_flag(folder: Path) -> None:
    """Two values of a flag on four tasks, whose waterfall said of each that the flag is all of the gain."""
    rows = [
        trial("vllm", size, n, size * speed + n, launch=f"{flag}{n}", ttft_p50=0.1, workload=task, **{FLAG: flag})
        | {"trial_id": f"{task}-{size}-{flag}-{n}"}
        for task in ("qa", "stories")
        for size in (1, 4)
        for flag, speed in ((64, 100.0), (128, 160.0))
        for n in range(3)
    ]
    run_of(folder, rows)


def ladder(folder: Path) -> None:
    """Thirteen steps on three tasks, whose waterfall was too high to be open."""
    rows = [
        trial("vllm", 8, n, 100 * 1.2**step + n, ladder=f"step {step}", workload=task, launch=f"{step}{n}")
        | {"ladder_parent": f"step {step - 1}" if step else None, "trial_id": f"{task}-{step}-{n}"}
        | {"ttft_p50": 0.1, "cost_per_million_tokens": 1.2**-step}
        for task in ("qa", "stories", "chat")
        for step in range(13)
        for n in range(3)
    ]
    run_of(folder, rows)


@pytest.mark.figures
@pytest.mark.parametrize("kind", FIGURES)
def test_a_report_with_its_figures_is_small_and_fetches_nothing(browser: Browser, tmp_path: Path, kind: str) -> None:
    engines = partial(make_run, replicates=2, batches=(1, 8), workloads=("qa", "reasoning"))
    {"engines": engines, "factorial": factorial, "ladder": ladder, "flag": one_flag}[kind](tmp_path)
    write_all(open_results(tmp_path))
    page = tmp_path / "report.html"
    assert page.stat().st_size < 1_000_000
    browser.log("browser"), browser.log("performance")
    browser.size(1440, 900)
    browser.open(page)
    sections = browser.run("return [...document.querySelectorAll('main > section')].map(section => section.id)")
    assert [name for name in sections if name != "warnings"] == ["answer", "explore", "figures", "provenance", "more"]
    assert browser.run("return document.getElementById('more').getBoundingClientRect().top + scrollY") < 4 * 900
    assert not browser.run("return document.querySelectorAll('#more > details[open]').length")
    browser.size(390, 844)
    browser.open(page)
    assert browser.run("return document.documentElement.scrollHeight") < 10_000
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    wide = ["figure-output_throughput"] if kind == "factorial" else []  # the names of its rows have 50 characters
    assert browser.run(ON_A_PHONE) == wide, "one panel in a row, which can be read, and none is cut off"
    browser.size(1280, 900)
    browser.open(page)
    figures = browser.run("return [...document.querySelectorAll('figure')].map(figure => figure.id)")
    assert not browser.run("return document.querySelector('#more #figure-waterfall')"), "it is open"
    assert browser.run("return [...document.querySelectorAll('table')].every(one => one.caption || one.ariaLabel)")
    assert {f"figure-{name}" for name in FIGURES[kind]} <= set(figures)
    for scheme in ("light", "dark"):
        browser.media(scheme=scheme)
        for figure in figures:
            top, height, drawn = browser.run(
                """location.hash = arguments[0];
                const figure = document.getElementById(arguments[0]), box = figure.getBoundingClientRect();
                const svg = figure.querySelector("svg").getBoundingClientRect();
                return [box.top, innerHeight, Math.min(svg.width, svg.height)]""",
                figure,
            )
            assert 0 <= top < height, f"the anchor of {figure} leads to it"
            assert drawn > 50, f"{figure} has a size"
    browser.media()
    assert browser.run(LINKED)
    assert browser.log("browser") == []
    assert fetched(browser) <= {page.as_uri(), "about:blank"}


def test_the_axes_and_the_front_are_what_was_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    every = browser.run(MARKS)
    assert every == 6, "three batch sizes of two engines"
    assert "Throughput per GPU" in text(browser, "#plot")
    browser.run(SET, "y", "cost_per_million_tokens")
    browser.run(SET, "x", "e2el_p50")
    assert all(title in text(browser, "#plot") for title in ("Cost per million", "E2EL p50 (ms)"))
    browser.run(SET, "front", True)
    assert 0 < browser.run(MARKS) < every
    browser.run(SET, "interval", "none")
    assert browser.run("return [...document.querySelectorAll('#plot .whiskers')].every(one => !one.getAttribute('d'))")


def test_whiskers_end_within_the_figure_or_have_an_arrowhead(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    top = browser.run(TOP_OF_WHISKERS)
    assert top > 14, "below the upper end of the axis"
    assert "arrowhead" not in text(browser, "#figure-note")
    rows = [trial("a", size, index, size * (1 + 4 * index), ttft_p50=0.1) for size in (8, 9) for index in range(2)]
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    browser.run(SET, "x", "size")
    assert browser.run(TOP_OF_WHISKERS) == 14, "an interval of two launches is very long"
    assert "arrowhead" in text(browser, "#figure-note")


def test_a_figure_without_an_interval_has_no_whisker_and_says_why(browser: Browser, tmp_path: Path) -> None:
    """Two trials of one launch, whose requests are not there: only the throughput has an interval."""
    rows = [trial("a", size, index, size + 0.1 * index, ttft_p99=0.1) for size in (8, 9) for index in range(2)]
    rows.append(trial("b", 8, 0, 20.0, ttft_p99=0.2))
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    browser.run(SET, "x", "ttft_p99")
    upright, alone = browser.run(WHISKERS)
    assert upright.count("V") == 2
    assert "H" not in upright, "of TTFT there is none"
    assert alone == ""
    assert "NaN" not in browser.run("return document.getElementById('plot').innerHTML")
    assert "has no interval" in text(browser, "#figure-note")
    pair, single = tips(browser, "8")
    assert "TTFT p99: 100 ms (no interval: requests too few or too dependent)" in pair
    assert " to " in pair.partition("TTFT")[0]
    assert single.count("no interval: one replicate") == 2
    browser.run(SET, "interval", "new")
    assert browser.run(WHISKERS) == ["", ""]
    assert all(tip.count("no interval: one launch") == 2 for tip in tips(browser, "8"))
    browser.run(SET, "interval", "none")
    assert "interval" not in "".join([*tips(browser, "8"), text(browser, "#figure-note")])


def test_an_interval_from_the_launches_own_figures_says_so(browser: Browser, tmp_path: Path) -> None:
    """Three launches, whose requests are not there; their p50 of TTFT are 100, 110 and 121 ms."""
    rows = [trial("a", 8, n, 10.0, ttft_p50=0.1 * 1.1**n, ttft_p99=0.3, launch=f"launch-{n}") for n in range(3)]
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    browser.run(SET, "x", "ttft_p50")
    factor = np.exp(4.302653 * (0.121 - 0.1) / 2 / (0.331 / 3) / np.sqrt(3))  # Student's t of two degrees of freedom
    mean = 1000 * (0.1 + 0.11 + 0.121) / 3
    for interval in ("these", "new"):
        browser.run(SET, "interval", interval)
        (tip,) = tips(browser, "")
        assert f"({mean / factor:.1f} to {mean * factor:.0f}, from the launches' values)" in tip
        assert browser.run(WHISKERS)[0].count("H") == 1
    assert "the interval is from the launches' values" in text(browser, "#figure-note")
    browser.run(SET, "x", "ttft_p99")
    assert "no interval" in tips(browser, "")[0], "of few requests only a median is hardly biased"


def tips(browser: Browser, size: str) -> list[str]:
    """What the figure says of each point of a size, from left to right."""
    browser.run("document.getElementById('plot').blur(); document.getElementById('plot').focus()")
    found = []
    for _ in range(browser.run(MARKS)):
        browser.keys(RIGHT)
        found.append(text(browser, "#tip"))
    return [tip for tip in dict.fromkeys(found) if not size or f"size {size}" in tip]


def test_a_line_that_is_switched_off_is_in_neither_figure_nor_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('#legend [data-line=\"1\"]').click()")
    assert browser.run(MARKS) == 3
    assert {row[0] for row in names(browser)} == {"transformers", "tgi"}
    browser.run("document.querySelector('#legend [data-line=\"1\"]').click()")
    assert browser.run(MARKS) == 6


def names(browser: Browser) -> list[list[str]]:
    script = "return [...document.querySelectorAll('#points-table .name')].map(each => [each.textContent])"
    rows: list[list[str]] = browser.run(script)
    return rows


def test_a_bound_collapses_the_table_to_one_answer_per_configuration(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert len(browser.run(ROWS)) == 9
    browser.run(SET, "ttft", "130")  # transformers at batch 8 has 0.064 (1 + 0.11 · 8^0.9) = 110 ms, and at 32 more
    rows = browser.run(ROWS)
    assert len(rows) == 2, "tgi has no result"
    verdict = text(browser, "#verdict")
    assert verdict.startswith("Best throughput per GPU within TTFT p")
    assert "vllm, qa, batch size 8" in verdict, "at 32 its first token takes longer"
    assert "transformers, qa, batch size 8" in verdict
    browser.run(SET, "ttft", "1")
    assert "None of 2 configurations meets the SLO" in text(browser, "#verdict")
    browser.run("document.getElementById('reset').click()")
    assert len(browser.run(ROWS)) == 9


def test_a_bound_holds_while_typed_and_the_page_opens_on_the_richest_task(browser: Browser, tmp_path: Path) -> None:
    rows = [trial("a", 8, 0, 10.0, ttft_p50=0.1) | {"workload": "few"}]
    rows += [trial("a", size, 0, 10.0 * size, ttft_p50=0.05 * size) for size in (1, 2, 4)]
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    assert browser.run(MARKS) == 3, "of the task with three points"
    browser.run("document.getElementById('ttft').focus()")
    browser.keys(*"120")
    assert wait_for(browser, f"return ({ROW_COUNT})", 1), "without Enter: one answer for the configuration"
    browser.run("document.getElementById('one').click()")
    assert not browser.run("return document.getElementById('one').checked"), "leaving the field switches nothing back"


def test_a_task_is_what_figure_table_and_answer_are_of(browser: Browser, page: Path) -> None:
    browser.open(page)
    rows = browser.run(ROWS)
    browser.run(SET, "one", True)
    assert ", qa, " in text(browser, "#verdict")
    browser.run(SET, "task", "1")
    assert ", reasoning, " in text(browser, "#verdict")
    assert ", qa, " not in text(browser, "#verdict")
    assert ", reasoning: " in browser.run("return document.getElementById('plot').getAttribute('aria-label')")
    browser.run(SET, "one", False)
    assert browser.run(ROWS) != rows


@pytest.mark.parametrize("name", ["tpot", "e2el"])
def test_each_latency_has_a_bound_and_a_slider(browser: Browser, page: Path, name: str) -> None:
    browser.open(page)
    browser.run(SET, "percentile", "p50")
    browser.run(SET, "x", f"{name}_p50")
    browser.run(SET, f"{name}-slider", 100)
    limit = float(browser.run("return document.getElementById(arguments[0]).value", name))
    verdict, rows = text(browser, "#verdict"), browser.run(ROWS)
    assert f"within {name.upper()} p" in verdict
    assert len(rows) == 2, "one answer per configuration"
    assert browser.run("return document.querySelectorAll('#plot .bound').length") == 1
    assert browser.run("return [...document.querySelectorAll('#plot .faded')].some(path => path.getAttribute('d'))")
    browser.run(SET, f"{name}-slider", 200)
    assert browser.run("return document.getElementById(arguments[0]).value", name) == "", "the far end is no bound"
    browser.open(page)
    browser.run(SET, "percentile", "p50")
    browser.run(SET, "x", f"{name}_p50")
    browser.run(SET, name, str(limit))
    assert text(browser, "#verdict") == verdict
    assert browser.run(ROWS) == rows
    browser.run(SET, name, "0.001")
    assert "None of 2 configurations meets the SLO" in text(browser, "#verdict")
    assert browser.run(FADED_WHISKERS), "a point over a bound keeps its interval"
    browser.run(SET, name, "")
    assert len(browser.run(ROWS)) == 9


def test_one_answer_per_configuration_by_the_goal_that_is_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(SET, "one", True)
    assert len(browser.run(ROWS)) == 2, "tgi has no result"
    assert text(browser, "#row-count") == "2 configurations"
    assert text(browser, "#verdict").startswith("Best throughput per GPU: vllm, qa, batch size 32"), "one price for all"
    browser.run(SET, "goal", "cost_per_million_tokens")
    assert text(browser, "#verdict").startswith("Best cost: vllm, qa, batch size 32")
    browser.run(SET, "goal", "ttft_p50")
    assert text(browser, "#verdict").startswith("Best TTFT p50: vllm, qa, batch size 1,")
    assert browser.run("return document.querySelectorAll('#points-table thead th')[2].innerText").startswith("TTFT p50")
    browser.run(SET, "one", False)
    assert len(browser.run(ROWS)) == 9
    assert text(browser, "#verdict") == ""


def test_a_severe_warning_takes_the_crown_here_too(browser: Browser, tmp_path: Path) -> None:
    engines = (("gptq", 200.0, 0.42), ("vllm", 120.0, 1.0))
    rows = [trial(name, 8, n, speed + n, agreement=agreed) for name, speed, agreed in engines for n in range(2)]
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    browser.run(SET, "one", True)
    assert text(browser, "#verdict").startswith("Best throughput: vllm, qa")
    assert "Not ranked, because of a severe warning: gptq, qa" in text(browser, "#verdict")
    assert [name for (name,) in names(browser)] == ["vllm", "gptq"]


def test_the_percentile_is_what_a_bound_is_of(browser: Browser, tmp_path: Path) -> None:
    rows = [trial("a", size, 0, 10.0 * size, ttft_p50=0.05 * size, ttft_p99=0.2 * size) for size in (1, 2)]
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    browser.run(SET, "percentile", "p50")
    browser.run(SET, "ttft", "60")
    assert "within TTFT p50 ≤ 60.0 ms: a, qa, batch size 1" in text(browser, "#verdict")
    browser.run(SET, "percentile", "p99")
    unmet = "The only configuration does not meet the SLO: a, qa, batch size 1 (TTFT p99 ≤ 60.0 ms: 233% over)."
    assert text(browser, "#verdict") == unmet


def test_columns_are_added_and_taken_away(browser: Browser, page: Path) -> None:
    browser.open(page)
    headings = "return [...document.querySelectorAll('#points-table th')].map(cell => cell.innerText.split('\\n')[0])"
    before = browser.run(headings)
    box = "document.querySelector('#columns input[value=request_throughput]').click()"
    browser.run(box)
    added = set(browser.run(headings)) - set(before)
    assert len(added) == 1, added
    assert next(iter(added)).lower().startswith("request")
    browser.run(box)
    assert browser.run(headings) == before


def test_the_price_sets_the_cost(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(SET, "one", True)
    before = cost_of_first(browser)
    browser.run(SET, "one", False)
    assert len(browser.run(ROWS)) == 9
    browser.run(SET, "price-0", str(2.93 * 2))
    assert len(browser.run(ROWS)) == 2, "one answer per configuration, as with a bound"
    assert cost_of_first(browser) == pytest.approx(2 * before, rel=0.01)
    browser.run(SET, "price-0-slider", 100)
    assert cost_of_first(browser) == pytest.approx(before, rel=0.01), "the middle is the run's price"


def cost_of_first(browser: Browser) -> float:
    script = """const titles = [...document.querySelectorAll("#points-table th")].map(cell => cell.textContent);
        const place = titles.findIndex(title => title.startsWith("Cost"));
        return document.querySelector("#points-table tbody tr").cells[place].firstChild.textContent"""
    return float(browser.run(script))


def test_rows_are_sorted_and_filtered(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(SET, "filter", "transformers size")
    browser.run("document.querySelector('[data-sort=throughput_per_gpu]').click()")
    column = [float(row[2].replace(",", "")) for row in browser.run(ROWS)]
    assert len(column) == 3
    assert column == sorted(column, reverse=True), "the best first"
    browser.run("document.querySelector('[data-sort=throughput_per_gpu]').click()")
    assert [float(row[2].replace(",", "")) for row in browser.run(ROWS)] == column[::-1]
    assert text(browser, "[aria-sort=ascending]").startswith("Throughput per GPU")


def test_no_column_is_cut_off(browser: Browser, page: Path) -> None:
    for width in (1280, 1440, 390):
        browser.size(width, 900)
        browser.open(page)
        script = "const t = document.querySelector('#points-table'); return [t.scrollWidth, t.parentNode.clientWidth]"
        table, room = browser.run(script)
        assert table <= room, width
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), width
    browser.size(1280, 900)


@pytest.mark.parametrize("width", [1280, 1440, 390])
def test_no_link_of_the_sections_is_cut_off(browser: Browser, page: Path, width: int) -> None:
    browser.size(width, 900)
    browser.open(page)
    links = browser.run("""return [...document.querySelectorAll("nav a")].map(link => {
        const box = link.getBoundingClientRect(), x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
        return [link.innerText, box.left, box.right, document.elementFromPoint(x, y) === link]})""")
    assert len(links) == 6
    cut_off = [name for name, left, right, visible in links if left < 0 or right > width or not visible]
    assert not cut_off
    hidden = browser.run("""return [...document.querySelectorAll("nav a")].filter(link => {
        link.click();
        const nav = document.querySelector("nav").getBoundingClientRect();
        return document.querySelector(link.hash).getBoundingClientRect().top < Math.max(0, nav.bottom);
    }).map(link => link.innerText)""")
    assert not hidden, "below the links, which stay at the top of the screen"
    browser.size(1280, 900)


def test_on_a_phone_a_heading_keeps_its_width_beside_a_long_answer(browser: Browser, page: Path) -> None:
    browser.size(390, 900)
    browser.open(page)
    script = """const cell = document.querySelector('main td[data-label]:not(:first-child)');
        cell.dataset.label = 'how sure'; cell.textContent = 'a long answer '.repeat(20);
        return [parseFloat(getComputedStyle(cell, '::before').width), cell.clientWidth]"""
    heading, cell = browser.run(script)
    assert heading > cell / 4
    browser.size(1280, 900)


def test_the_state_survives_a_reload_by_the_fragment(browser: Browser, page: Path) -> None:
    browser.open(page)
    choices = {"task": "1", "y": "ttft_p50", "x": "size", "interval": "new", "percentile": "p50", "front": False}
    choices |= {"ttft": "150", "price-0": "5", "goal": "throughput_per_gpu", "filter": "size"}
    for control, value in choices.items():
        browser.run(SET, control, value)
    browser.run("document.querySelector('#legend [data-line=\"2\"]').click()")
    browser.run("document.querySelector('[data-sort=line]').click(); document.querySelector('.name').click()")
    browser.run("document.querySelector('#columns input[value=tpot_p50]').click()")
    shown = {part: text(browser, part) for part in ("#points-table", "#verdict", "#details", "#plot", "#legend")}
    fragment = urlparse(browser.run("return location.href")).fragment
    assert parse_qs(fragment.partition("?")[2])["task"] == ["reasoning"]
    browser.open(page, f"#{fragment}")
    assert {part: text(browser, part) for part in shown} == shown
    for control, value in choices.items():
        assert browser.run(STATE, control) == value, control
    browser.open(page, "#explore?task=nonsense&y=__proto__&ttft=-3&point=x&prices=,,,&hidden=99&columns=a,b")
    assert browser.run(MARKS) == 6
    assert browser.log("browser") == []


@pytest.mark.parametrize("clipboard", ["granted", "denied"])
def test_the_copied_link_brings_back_the_view(browser: Browser, page: Path, clipboard: str) -> None:
    """A browser may deny a file its clipboard: then an older way copies."""
    browser.open(page)
    browser.run(SET, "y", "ttft_p50")
    browser.run(SET, "filter", "vllm")
    shown = [text(browser, part) for part in ("#points-table", "#plot")]
    allow_clipboard(browser, clipboard)
    press(browser, "copy-link"), press(browser, "copy-link")
    assert wait_for(browser, COPY_LABEL, "Copied")
    assert wait_for(browser, COPY_LABEL, "Copy link"), "also after two clicks"
    assert browser.run("return document.activeElement.id") == "copy-link"
    allow_clipboard(browser, "granted")
    link = urlparse(browser.run("return navigator.clipboard.readText()"))
    assert parse_qs(link.fragment.partition("?")[2]) == {"y": ["ttft_p50"], "filter": ["vllm"]}
    assert (link.scheme, link.path) == ("", page.name), "where the file lies leads nobody else to it"
    browser.open(page, f"#{link.fragment}")
    assert [text(browser, part) for part in ("#points-table", "#plot")] == shown


def allow_clipboard(browser: Browser, setting: str) -> None:
    for name in ("clipboard-write", "clipboard-read"):
        browser.devtools("Browser.setPermission", permission={"name": name}, setting=setting)


def press(browser: Browser, control: str) -> None:
    """Press a button by the keyboard, as a person does: a script's own click may not write to the clipboard."""
    browser.run("document.getElementById(arguments[0]).focus()", control)
    browser.keys(ENTER)


def wait_for(browser: Browser, script: str, value: Any) -> bool:
    deadline = time.monotonic() + 20
    while (found := browser.run(script)) != value and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found == value)


def test_a_copy_that_fails_is_not_called_one(browser: Browser, page: Path) -> None:
    browser.open(page)
    allow_clipboard(browser, "denied")
    browser.run("document.execCommand = () => false")
    press(browser, "copy-link")
    assert wait_for(browser, COPY_LABEL, "Not copied")


def test_more_rows_are_shown_and_stay_when_one_is_opened(browser: Browser, tmp_path: Path) -> None:
    rows = [trial(f"engine-{line}", size, 0, 10.0 * size + line) for line in range(26) for size in range(1, 51)]
    browser.open(written(Path(run_of(tmp_path, rows).paths.out)))
    assert len(browser.run(ROWS)) == 10
    assert text(browser, "#more-rows") == "Show 1,000 more rows (1,290 not shown)"
    press(browser, "more-rows")
    assert len(browser.run(ROWS)) == 1010
    assert text(browser, "#more-rows") == "Show 290 more rows (290 not shown)"
    browser.run("document.querySelectorAll('#points-table .name')[1000].click()")
    assert len(browser.run(ROWS)) == 1010, "the row that was opened is still there"
    assert browser.run("return document.querySelectorAll('#points-table tr.selected').length") == 1
    press(browser, "more-rows")
    assert len(browser.run(ROWS)) == 1300
    assert browser.run("return document.getElementById('more-rows').hidden")
    browser.run(SET, "filter", "engine-7 size 9")
    assert len(browser.run(ROWS)) == 5
    assert browser.run("return document.getElementById('more-rows').hidden")


def test_a_point_says_its_figures_to_pointer_and_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    place = browser.run("""
        const svg = document.querySelector("#plot svg"), mark = svg.querySelector(".marks").getAttribute("d");
        scrollTo(0, svg.getBoundingClientRect().top + scrollY - 100);
        const box = svg.getBoundingClientRect(), at = mark.match(/M([\\d.]+),([\\d.]+)/);
        return [Math.round(box.left + Number(at[1]) + 4), Math.round(box.top + Number(at[2]))]""")
    browser.pointer(*place)
    assert "Throughput per GPU: " in text(browser, "#tip")
    assert "tokens/s" in text(browser, "#tip")
    browser.run("document.getElementById('plot').focus()")
    browser.keys(RIGHT)
    first = text(browser, "#tip")
    browser.keys(RIGHT)
    assert text(browser, "#tip") != first
    browser.keys(ENTER)
    details = text(browser, "#details")
    assert "TTFT p50" in details
    links = browser.run(LINKS)
    assert {link.rpartition("/")[2] for link in links} == {"engine.log", "requests.parquet", "telemetry.parquet"}
    assert all((page.parent / link).is_file() for link in links)
    command = text(browser, "#details .again code")
    assert command.startswith(f"sweep rerun {page.parent}#")
    trial_ids = set(analysis.load(page.parent).query("outcome == 'ok'")["trial_id"])
    assert command.rpartition("#")[2] in trial_ids
    assert "another trial" in details


def test_files_that_were_put_together_are_named_with_the_line_that_reads_them(browser: Browser, tmp_path: Path) -> None:
    paths = make_run(tmp_path / "run", replicates=1, batches=(1, 8), workloads=("qa",))
    compact(paths, fewest=1)
    browser.open(written(paths.out))
    browser.run("document.querySelector('#points-table .name').click()")
    links = browser.run(LINKS)
    assert [link.rpartition("/")[0] for link in links[1:]] == ["deployments/compact"] * 2
    assert all((paths.out / link).is_file() for link in links)
    assert "Read one trial's requests" in text(browser, "#details")
    assert f"analysis.requests('{paths.out}', " in text(browser, "#details .again:last-child code")
    allow_clipboard(browser, "granted")
    for block in browser.run("return [...document.querySelectorAll('#details .again')].map((_, place) => place)"):
        command = browser.run(
            """const block = document.querySelectorAll('#details .again')[arguments[0]];
            block.querySelector('button').focus(); return block.querySelector('code').innerText""",
            block,
        )
        browser.keys(ENTER)
        assert wait_for(browser, "return document.activeElement.textContent", "Copied")
        assert browser.run("return navigator.clipboard.readText()") == command
    close = "[...document.querySelectorAll('#details button')].find(button => button.textContent === 'Close').click()"
    browser.run(close)
    assert browser.run("return document.getElementById('details').hidden")
    assert "point=" not in browser.run("return location.hash")


def test_what_is_shown_comes_as_csv(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    browser.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.run(SET, "filter", "vllm")
    browser.run("document.getElementById('csv').click()")
    path = tmp_path / "throughput_bound.csv"
    wait_until(path.is_file)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 3
    assert {row["configuration"] for row in rows} == {"vllm"}
    low, value, high = (float(rows[0][f"Throughput per GPU (tokens/s per GPU){end}"]) for end in (" low", "", " high"))
    assert low < value < high


def test_on_a_phone_a_row_is_a_card(browser: Browser, page: Path) -> None:
    script = "return getComputedStyle(document.querySelector('#points-table tbody tr')).display"
    browser.open(page)
    assert browser.run(script) == "table-row"
    browser.size(390, 844)
    browser.open(page)
    assert browser.run(script) == "block"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.size(1280, 900)


def test_dark_and_print(browser: Browser, page: Path) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page)
    light = browser.run(background)
    browser.media(scheme="dark")
    assert browser.run(background) != light
    browser.media("print")
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("return getComputedStyle(document.querySelector('.needs')).display") == "none"
    browser.media()


def test_what_an_engine_wrote_is_text(browser: Browser, tmp_path: Path) -> None:
    rows = [trial(HOSTILE, size, 0, 10.0 * size, ttft_p50=0.1, tpot_p50=0.01) for size in (1, 2)]
    rows.append(trial("b", 4, 0, None, reason=HOSTILE, log_tail=HOSTILE))
    page = written(Path(run_of(tmp_path, rows).paths.out))
    browser.log("browser")
    browser.open(page)
    assert browser.run("return document.images.length") == 0
    assert HOSTILE in text(browser, "#points-table")
    assert browser.log("browser") == []


def test_two_thousand_points_are_usable(browser: Browser, tmp_path: Path) -> None:
    rows = [
        trial(f"engine-{line}", size, 0, size * (10 + line), ttft_p50=0.01 * size, tpot_p50=0.01, ttft_p99=0.02 * size)
        for line in range(40)
        for size in range(1, 51)
    ]
    page = written(Path(run_of(tmp_path, rows).paths.out))
    assert page.stat().st_size < 2_000_000
    browser.open(page)
    assert "2,000 points" in text(browser, "#row-count")
    events: dict[str, Any] = {"y": "ttft_p50", "ttft-slider": 100, "filter": "engine-1", "front": True, "one": False}
    for control, value in events.items():
        script = f"const begin = performance.now(); {SET}; document.body.offsetHeight; return performance.now() - begin"
        took = min(browser.run(script, control, value) for _ in range(3)) / 1000  # the least: others use the machine
        print(f"{control}: {1000 * took:.0f} ms")
        assert took < MOST_SECONDS, control


def test_the_points_of_two_runs_are_on_one_page(browser: Browser, page: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "tuesday", replicates=2, batches=(1, 8), workloads=("qa",))
    write_several([open_results(page.parent), open_results(tmp_path / "tuesday")], tmp_path / "both")
    both = tmp_path / "both" / "report.html"
    browser.log("browser"), browser.log("performance")
    browser.open(both)
    assert browser.run(MARKS) == 6 + 4
    press(browser, "more-rows")
    lines = {name for (name,) in names(browser)}
    assert {"vllm (throughput_bound)", "vllm (tuesday)"} <= lines
    browser.run(SET, "filter", "vllm (tuesday)")
    assert browser.run(MARKS) == 2
    browser.run("document.querySelector('#points-table .name').click()")
    links = browser.run(LINKS)
    assert {link.rpartition("/")[2] for link in links} == {"engine.log", "requests.parquet", "telemetry.parquet"}
    assert all((both.parent / link).is_file() for link in links)
    assert text(browser, "#details .again code").startswith(f"sweep rerun {tmp_path / 'tuesday'}#")
    browser.run(SET, "filter", "")
    browser.run(SET, "one", True)
    assert text(browser, "#row-count") == "4 configurations"
    assert browser.run(LINKED)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.log("browser") == []
    assert fetched(browser) <= {both.as_uri(), "about:blank"}


def test_an_ordinary_report_is_small(page: Path) -> None:
    assert page.stat().st_size < 1_000_000
    assert len(html(RunResults(open_results(page.parent).run), [])) < 1_000_000
