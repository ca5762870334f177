"""The HTML around a report: one file that needs no network, reads well light and dark, and prints."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from analysis.plotting.plots import GRID, INK, MUTED, SavedFigure

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2329; --muted: #69707a; --grid: #e3e5e8; --page: #ffffff; --card: #f6f7f9;
  --accent: #0072b2; --warn-line: #d59f0f; --warn: #fdf6e3; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --muted: #9aa3ad; --grid: #33393f; --page: #15181c;
  --card: #1e2227; --accent: #56b4e9; --warn-line: #b58900; --warn: #2a2616; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 80rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 2.8rem 0 0.8rem; padding-bottom: 0.3rem; border-bottom: 1px solid var(--grid); font-size: 1.25rem; }
h3 { margin: 1.6rem 0 0.4rem; font-size: 1rem; }
p { max-width: 48rem; }
.lead, .note, figcaption, .card small, dd small { color: var(--muted); }
.lead { margin: 0.4rem 0 0; }
.note, figcaption { font-size: 0.87rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); gap: 0.8rem; margin: 1.6rem 0; }
.card { padding: 0.8rem 1rem; border: 1px solid var(--grid); border-radius: 8px; background: var(--card); }
.card b { display: block; margin: 0.1rem 0; font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.card b i { font-size: 0.9rem; font-style: normal; font-weight: 400; }
.card small { display: block; font-size: 0.82rem; line-height: 1.4; }
.doubts { margin: 0; padding: 0.8rem 1.2rem 0.8rem 2.2rem; border-left: 4px solid var(--warn-line); border-radius: 4px;
  background: var(--warn); }
.doubts li { margin: 0.25rem 0; max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.7rem 0.28rem 0; text-align: right; vertical-align: baseline; white-space: nowrap; }
th { border-bottom: 1px solid var(--muted); font-weight: 600; line-height: 1.25; }
th span, td span { color: var(--muted); font-weight: 400; }
td { border-bottom: 1px solid var(--grid); }
th.text, td.text { text-align: left; }
td.best { font-weight: 700; }
td.wide { white-space: normal; min-width: 16rem; }
.bad { color: var(--bad); font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: 1.6rem 1rem; margin: 1rem 0 1.4rem; }
figure { margin: 0; max-width: 100%; overflow-x: auto; }
figcaption { max-width: 34rem; }
figure svg { display: block; max-width: 100%; height: auto; }
pre { margin: 0.4rem 0 1rem; padding: 0.7rem 1rem; overflow: auto; max-height: 22rem; border-radius: 6px;
  background: var(--card); font-size: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.4rem; font-size: 0.9rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.5rem; } }
@media print { :root { color-scheme: light; --ink: #000; --muted: #555; --grid: #ccc; --page: #fff; --card: #fff;
  --accent: #000; --warn: #fff; --bad: #900; } body { max-width: none; padding: 0; font-size: 11px; }
  figure, .card, tr, .doubts { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document; `body` is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A section with its heading; empty without content."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1, classes: Sequence[str] = ()) -> str:
    """Cells are HTML; the first `text` columns are words, the others numbers, unless `classes` says what each is."""
    kinds = classes or ["text"] * text + [""] * (len(headings) - text)
    head = "".join(f'<th class="{kind}">{cell}</th>' for kind, cell in zip(kinds, headings, strict=True))
    lines = [
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Terms (text) with what they are (HTML)."""
    return "<dl>" + "\n".join(f"<dt>{escape(term)}</dt><dd>{meaning}</dd>" for term, meaning in entries) + "</dl>"


def card(label: str, value: str, unit: str, detail: Iterable[str]) -> str:
    """One figure to see first."""
    lines = "".join(f"<small>{escape(line)}</small>" for line in detail if line)
    return f'<div class="card"><small>{escape(label)}</small><b>{escape(value)} <i>{escape(unit)}</i></b>{lines}</div>'


def figures(drawn: Iterable[SavedFigure]) -> list[str]:
    """Figures beside each other where they fit."""
    inner = "\n".join(figure(one) for one in drawn)
    return [f'<div class="figures">{inner}</div>'] if inner else []


def figure(drawn: SavedFigure) -> str:
    """An SVG in the page: in the page's own ink, and with ids that no other figure has."""
    svg = drawn.svg[drawn.svg.index("<svg") :]
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid")):
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r'\bid="', f'id="{drawn.name}-', svg)
    svg = re.sub(r'href="#', f'href="#{drawn.name}-', svg)
    svg = svg.replace("url(#", f"url(#{drawn.name}-")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawn.caption)}"', 1)
    return f"<figure>\n{svg}\n<figcaption>{escape(drawn.caption)}</figcaption>\n</figure>"
