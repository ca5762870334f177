"""Rulings on comparisons of a value with a limit. The value's interval may contain the limit."""

from collections.abc import Iterable
from enum import Enum


class Ruling(Enum):
    """The ruling on a claim about values with intervals."""

    HOLDS = "holds with the whole interval"
    FAILS = "the whole interval contradicts it"
    OPEN = "the interval has values on both sides of a limit"
    UNKNOWN = "points or their intervals are missing"


def all_of(rulings: Iterable[Ruling]) -> Ruling:
    """Return the ruling on a claim that holds if all its parts hold. One failing part contradicts the claim."""
    return _first_of((Ruling.FAILS, Ruling.UNKNOWN, Ruling.OPEN), rulings, Ruling.HOLDS)


def any_of(rulings: Iterable[Ruling]) -> Ruling:
    """Return the ruling on a claim that holds if one of its cases holds, and fails if all its cases fail."""
    return _first_of((Ruling.HOLDS, Ruling.UNKNOWN, Ruling.OPEN), rulings, Ruling.FAILS)


def _first_of(order: Iterable[Ruling], rulings: Iterable[Ruling], otherwise: Ruling) -> Ruling:
    present = set(rulings)
    return next((ruling for ruling in order if ruling in present), otherwise)
