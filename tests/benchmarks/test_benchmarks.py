"""The conditions under which benchmarks/ measure commands."""

import os
import sys

import pytest

from benchmarks import client, resume

PRINT_CACHE = [sys.executable, "-c", "import sys; print(sys.pycache_prefix, sys.dont_write_bytecode)"]


@pytest.mark.slow
def test_the_first_command_compiles_where_the_measured_ones_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is started from a process of its own, which imports the module anew."""
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "elsewhere")  # and restored after the test
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "argv", ["resume"])
    printed: list[str] = []

    def both(*_: object) -> None:
        printed.append(resume.measure(PRINT_CACHE).output)
        printed.append(process_of_its_own(resume.measure, PRINT_CACHE).output)
        raise SystemExit

    process_of_its_own = resume.elsewhere
    monkeypatch.setattr(resume, "elsewhere", both)
    with pytest.raises(SystemExit):
        resume.main()
    assert printed[0].endswith("/compiled False\n")
    assert printed == [printed[0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tls", "gateway"])
def test_the_clients_errors_are_known_behind_tls_and_a_gateway(path: str) -> None:
    """Each answer is matched with the server's true times."""
    row = client.Row(path, 4, 2, tokens=8, **{path: True})
    result, load_kept, _ = client.run_row(row, None, (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))))
    assert (result.failed, len(result.errors["ttft"]), len(result.errors["itl"])) == (0, 4, 4 * 7)
    assert load_kept
