"""Rows in the driver's memory: the same cells, in less of it."""

import math
import os
import pickle
import tracemalloc

from sweep.disk.ledger import Ledger
from sweep.disk.ledger_lines.compact_row import CompactRow, dict_of_row
from sweep.disk.row import schema
from sweep.disk.run_files import RunPaths

EXAMPLES = {float: 0.25, int: 70_000, str: "lognormal", bool: True, list: ["few-requests"]}


def test_a_compact_row_has_the_cells_of_its_row():
    rows = [{"trial_id": "a", "x": 1.5, "n": 3, "ok": True}, {"n": 1, "x": math.inf, "extra": [1], "trial_id": "b"}]
    for row, compact in zip(rows, map(CompactRow, rows), strict=True):
        assert compact == row == dict_of_row(compact)
        assert {column: type(cell) for column, cell in compact.items()} == {c: type(cell) for c, cell in row.items()}
        assert len(compact) == len(row)
        assert compact.get("unheard of") is None
        assert compact.get("extra") == row.get("extra")


def test_a_thousand_rows_from_another_process_take_at_most_seven_mebibytes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    texts = {"config": "c" * 900, "versions": "v" * 4000, "engine_facts": "f" * 1500}
    row = {column: EXAMPLES[kind] for column, kind in schema().items() if column not in ("exit", "fault")}
    row |= texts | {"outcome": "ok", "attempt": "1"}
    ledger = Ledger(RunPaths(tmp_path).ledger)
    tracemalloc.start()
    try:
        for number in range(1000):
            ids = {"trial_id": f"{number:012x}", "deployment_id": f"{number // 10:012x}"}
            floats = {column: cell + number for column, cell in row.items() if type(cell) is float}
            ledger.commit(pickle.loads(pickle.dumps(row | floats | ids)))
        assert tracemalloc.get_traced_memory()[0] <= 7 * 2**20
    finally:
        tracemalloc.stop()
        ledger.close()
    assert len(Ledger(RunPaths(tmp_path).ledger, write=False).rows) == 1000
