"""The report's colours: WCAG AA contrast in light and dark, computed from the style sheet that a designer edits."""

import re
from pathlib import Path

import pytest

STYLE = (Path(__file__).parents[2] / "analysis" / "report" / "templates" / "style.css").read_text()
TEXT, MARK = 4.5, 3.0  # ratios that WCAG 2.2 AA asks for (1.4.3, 1.4.11)


def colours(scheme: str) -> dict[str, str]:
    start = STYLE.index("prefers-color-scheme: dark") if scheme == "dark" else 0
    block = STYLE[STYLE.index(":root", start) :].partition("}")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_can_be_read(scheme: str) -> None:
    named = colours(scheme)
    pairs = [(ink, ground, TEXT) for ink in ("ink", "muted", "accent", "bad") for ground in ("page", "card")]
    pairs += [("warn-line", "page", TEXT), ("ink", "warn", TEXT), ("muted", "warn", TEXT)]
    pairs += [(f"line-{index}", "page", MARK) for index in range(7)]
    weak = {
        f"{front} on {back}": round(contrast(named[front], named[back]), 2)
        for front, back, least in pairs
        if contrast(named[front], named[back]) < least
    }
    assert not weak


def test_the_contrast_is_wcag_s() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
