"""The table of docs/backends.md: the features of each backend in conf/backend, as its code states them.

`python -m tests.support.backends_table` makes the document's table anew.
"""

from collections.abc import Sequence

from backends.base import Backend
from backends.installed import configured, names
from sweep.base.config import ROOT

DOCUMENT = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- table: python -m tests.support.backends_table -->", "<!-- end of table -->"
NOT_STATED = "–"  # by the backend's class
HEADINGS = (
    "backend",
    "file",
    "streaming",
    "native batching",
    "continuous batching",
    "beam search",
    "KV metric",
    "quantisations",
    "GPU needed",
)


def cells(backend: Backend) -> tuple[str, ...]:
    name, traits = backend.name, backend.traits
    if not backend.launches:
        return name, _file(backend), *("as the endpoint" for _ in HEADINGS[2:-1]), "no"
    return (
        name,
        _file(backend),
        "engine's own stamps" if traits.timed_inside else "yes",
        "list of prompts" if backend.batch_form == "list" else "simultaneous streams",
        _yes(traits.continuous_batching),
        _yes(traits.beam_search),
        _metric(backend),
        traits.quantisations or NOT_STATED,
        _yes(traits.needs_gpu or not _runs_on_cpu(backend)),
    )


def _runs_on_cpu(backend: Backend) -> bool:
    return bool(backend.env.cpu or backend.env.python or backend.env.binary)


def _file(backend: Backend) -> str:
    return f"`{type(backend).__module__.replace('.', '/')}.py`"


def _metric(backend: Backend) -> str:
    """The KV cache's metric: its use, its size, or only the device's memory."""
    if "kv_cache_usage" in backend.metric_names.keys() - backend.flag_rules.newer.keys():
        return "usage"
    return "bytes" if "kv_cache_bytes" in backend.metric_names else "memory only"


def _yes(trait: bool | None) -> str:
    return NOT_STATED if trait is None else "yes" if trait else "no"


def table() -> str:
    rows: list[Sequence[str]] = [HEADINGS, ["---"] * len(HEADINGS), *(cells(configured(name)) for name in names())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
