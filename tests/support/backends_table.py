"""The tables of docs/backends.md: the features of each backend in conf/backend, and the causes of failures.

`python -m tests.support.backends_table` makes the document's tables anew.
"""

from collections.abc import Iterable, Sequence

from backends.base import Backend
from backends.installed import configured, names
from backends.tables.log_causes import cause_table
from sweep.base.config import ROOT

DOCUMENT = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- {}: python -m tests.support.backends_table -->", "<!-- end of {} -->"
FAULTS = {
    "engine": "the engine; final if it repeats",
    "itself": "the engine, even if it was killed",
    "user": "the engine; never final: fix it and run the command again",
    "node": "the surroundings; retried on another node",
    "outage": "the surroundings; retried later",
    "memory": "nobody: the outcome is `oom_load` or `oom_run`",
}
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
    """The table in Markdown, one row a backend."""
    return _markdown(HEADINGS, (cells(configured(name)) for name in names()))


def causes() -> str:
    """The table of the causes of failures in Markdown."""
    rows = ((cause.cause, FAULTS[cause.whose], cause.remedy) for cause in cause_table().causes)
    return _markdown(("cause", "whose fault", "remedy"), rows)


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows))


def with_table(text: str) -> str:
    """A document with its tables made anew."""
    for name, made in (("table", table()), ("causes", causes())):
        before, _, rest = text.partition(BEGIN.format(name))
        _, _, after = rest.partition(END.format(name))
        text = f"{before}{BEGIN.format(name)}\n\n{made}\n\n{END.format(name)}{after}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
