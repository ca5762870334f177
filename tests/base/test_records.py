"""Records: what goes in comes out, in little memory, with the standard library alone."""

import subprocess
import sys
from array import array

from hypothesis import given
from hypothesis import strategies as st

from sweep.base.records import Record, Records

chunks = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)), max_size=5)
records = st.lists(
    st.builds(
        lambda request_id, phase, times, chunks, counts, texts, ended: Record(
            request_id,
            phase,
            *times,
            array("I", [us for us, _ in chunks]),
            array("H", [tokens for _, tokens in chunks]),
            *counts,
            *texts,
            ended,
        ),
        st.text(max_size=5),
        st.sampled_from(["warmup", "measured"]),
        st.tuples(*[st.floats(-1e6, 1e6)] * 3),
        chunks,
        st.tuples(*[st.integers(-1, 2**31 - 1)] * 3),
        st.tuples(*[st.none() | st.text(max_size=5)] * 2),
        st.none() | st.floats(-1e6, 1e6),
    ),
    max_size=8,
)


@given(records)
def test_every_record_comes_back_as_it_went_in(written: list[Record]) -> None:
    columns = Records()
    for record in written:
        columns.append(record)
    assert len(columns) == len(written)
    assert list(columns) == written
    assert [columns[index] for index in range(len(written))] == written
    assert columns.offsets[-1] == len(columns.chunk_us) == len(columns.chunk_tokens)


def test_memory_is_that_of_its_columns() -> None:
    """6 bytes a chunk, 138 a request beside its texts: a million requests of 128 chunks take 0.91 GB."""
    columns = Records()
    for index in range(2000):
        columns.append(Record(str(index), "measured", 0, 0, 0, array("I", range(128)), array("H", [1]) * 128))
    held = [value for value in vars(columns).values() if isinstance(value, array)]
    assert sum(len(column) * column.itemsize for column in held) == 2000 * (128 * 6 + 138) + 8
    assert sum(sys.getsizeof(column) for column in held) < 1.25 * 2000 * (128 * 6 + 80)  # arrays grow by an eighth


def test_the_client_pays_for_no_import() -> None:
    """The measuring process imports this file: no numpy, no pydantic, nothing of ours besides."""
    code = "import sys; before = set(sys.modules); import sweep.base.records; print(*set(sys.modules) - before)"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ours = {"sweep", "sweep.base", "sweep.base.records"}
    assert {name for name in found if name.split(".")[0] not in sys.stdlib_module_names} == ours
