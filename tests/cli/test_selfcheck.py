"""What the self-check refuses before it measures anything. What it finds is in test_measurement.py."""

import pytest

from sweep.__main__ import main
from sweep.cli import selfcheck


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch):
    monkeypatch.setattr(selfcheck, "check", lambda *_, **__: pytest.fail("this input is bad: nothing is measured"))


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--streams", "-3", "whole numbers of at least 1"),
        ("--streams", "0", "whole numbers of at least 1"),
        ("--streams", "many", "whole numbers of at least 1"),
        ("--itl", "-1", "seconds from 0"),
        ("--itl", "nan", "seconds from 0"),
        ("--itl", "inf", "seconds from 0"),
        ("--itl", "fast", "seconds from 0"),
        ("--processes", "x", "whole numbers of at least 1, or auto"),
        ("--processes", "0", "whole numbers of at least 1, or auto"),
    ],
)
def test_an_option_out_of_range_is_refused(option, value, allowed, capsys):
    assert main(["selfcheck", option, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option}: {value}: expected {allowed}" in line


@pytest.mark.parametrize(("override", "named"), [("+experiment=nope", "nope"), ("foo=1", "foo")])
def test_an_override_that_is_none_is_refused_in_a_line(override, named, capsys):
    assert main(["selfcheck", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line
