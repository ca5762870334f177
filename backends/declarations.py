"""What a backend's class declares about its engine, whatever its configuration: four records, each declared once."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from backends.tables.flags import value_of, with_value
from backends.tables.log_causes import KnownCause, cause_table, told
from backends.tables.table import EngineTable, load, spelling
from sweep.base.exits import Exit

# Fields of a backend that say how it is run here, and of a model those for estimates: they cannot change a result.
NOT_IN_ID = {"port", "launch_timeout", "stop_grace", "metric_names", "shape"}
NOT_IN_ID |= {"price_per_hour", "price_per_million_tokens", "auth_header", "auth_scheme"}
OTHER_CONFIGURATION = "model=path and model.path to a folder with that config.json"  # for another model's shape
RANDOM_WEIGHTS = "a model with random weights, e.g. model=random-llama-2-7b"
ADDRESS_FLAGS = ("host", "hostname", "server-name")  # flags of an address: what an engine lets its caller do is local

# What the last words of a Python or C++ program look like: "ValueError: …", "x.py: error: unrecognized arguments …".
ERROR_LINE = re.compile(
    r"^[\w.]*(Error|Exception|Interrupt)\b|\berror:|^error\b|\bfatal\b|\bfailed\b|\berror response\b", re.IGNORECASE
)
ANNOUNCES = re.compile(r"\d+ validation errors? for ")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# Of a line that is no error: its level, or more characters than any error has (an engine's settings).
HARMLESS = re.compile(r"\b(DEBUG|INFO|WARN)\b|[Ww]arning\b|WARNING|^\d+\.\d\d\.\d{3}\.\d{3} [DIW] |^.{1000}")
TRACEBACK = "Traceback (most recent call last)"

# A key of vLLM's requests; one of SGLang's answers on its own route; a path of our host; llama.cpp's grammars of token
# ids, which make it generate the text.
LogProbabilitiesBy = Literal["prompt_logprobs", "input_token_logprobs", "host", "token_grammar"]


@dataclass(frozen=True, kw_only=True)
class FlagRules:
    """The engine's own flags: which exist, which only sweep sets, and which sweep interprets."""

    tables: tuple[str, ...] = ()  # of backends/tables, one for each version or kind; the first is the pinned one
    option_tables: Mapping[str, str] = field(default_factory=dict)  # the same, by the backend's field of such options
    newer: Mapping[str, str] = field(default_factory=dict)  # missing in the pinned version: the first that has it
    set_by: Mapping[str, str] = field(default_factory=dict)  # "flag" or "flag=value" of sweep's: the key to set instead
    beyond: tuple[str, ...] = ()  # "flag" or "flag=value" that reaches other nodes or GPUs than those that are leased
    parallel: tuple[str, ...] = ()  # multiply the GPUs of an engine: data, pipeline, context
    folded: str | None = None  # takes a JSON object, whose keys may be flags too: dotted ones, and the ones in `short`
    short: Mapping[str, str] = field(default_factory=dict)  # flags that are a key of `folded` each
    draft: str | None = None  # names a draft model, "flag" or "flag.key" of a JSON object
    draft_revision: str | None = None  # and its revision
    settled: tuple[str, ...] = ()  # that `Wire.version_path` has as the engine settled them

    @property
    def table(self) -> EngineTable | None:
        """The pinned version's flags, metrics, routes and messages, or None."""
        return load(self.tables[0]) if self.tables else None

    def meanings(self, name: str) -> list[str]:
        """Return the flags that a name may stand for, in one spelling."""
        return self.table.meanings(name) if self.table else [spelling(name)]

    def _forms(self, name: str, value: object) -> list[str]:
        return [form for flag in self.meanings(name) for form in (flag, f"{flag}={value}")]

    def setter(self, name: str, value: object) -> str | None:
        """Return the key that sets what a flag, perhaps abbreviated, would set against the row."""
        return next((self.set_by[form] for form in self._forms(name, value) if form in self.set_by), None)

    def reaches_beyond(self, name: str, value: object) -> bool:
        """Return whether a flag leads to other nodes or GPUs than the deployment's own."""
        return value not in (None, False) and not set(self.beyond).isdisjoint(self._forms(name, value))

    def in_one_spelling(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Return the flags in the engine's spelling: `max_num_seqs` and `max-num-seqs` are one, in ids too."""
        spelt: dict[str, Any] = {}
        for key, value in flags.items():
            meanings = self.meanings(key)
            if "trust-remote-code" in meanings or spelling(key).startswith("trust-remote"):
                raise ValueError(f"flags.{key}: running code that comes with a model is not supported")
            if not set(ADDRESS_FLAGS).isdisjoint(meanings):
                raise ValueError(f"flags.{key}: engines answer on loopback only")
            name = self.table.canonical(key) if self.table else key
            if name in spelt:
                raise ValueError(f"flags.{key}: given twice, in two spellings")
            spelt[name] = value
        return self._with_one_object(spelt)

    def _with_one_object(self, flags: dict[str, Any]) -> dict[str, Any]:
        """Return the flags with `folded` as a mapping, whether its keys came as JSON, dotted or as short flags."""
        keys: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for flag, value in flags.items():
            parts = self._keys_of_object(flag, value)
            if twice := next((key for key in parts if key in keys), None):
                raise ValueError(f"flags.{flag}: {twice} is given twice, in two spellings")
            keys |= parts
            others |= {} if parts else {flag: value}
        if not keys:
            return flags
        assert self.folded is not None
        nested: dict[str, Any] = {}
        for path, value in keys.items():
            *outer, last = path.split(".")
            inner = nested
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[last] = value
        return {**others, self.table.canonical(self.folded) if self.table else self.folded: nested}

    def _keys_of_object(self, flag: str, value: Any) -> dict[str, Any]:
        """Return the keys of `folded` that a flag sets; empty for any other flag, and if it is not set."""
        head, _, path = flag.partition(".")
        if spelling(flag) in self.short and value is not None:
            return {self.short[spelling(flag)]: value}
        if self.folded is None or spelling(head) != self.folded:
            return {}
        if path:
            return {path: value}
        if isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value)
        return dict(value) if isinstance(value, Mapping) else {}

    def draft_model(self, flags: Mapping[str, Any]) -> tuple[str, str | None] | None:
        """Return the draft model that flags name, a repository or a folder, with its revision, or None."""
        model, revision = (value_of(flags, flag) if flag else None for flag in (self.draft, self.draft_revision))
        return None if model is None else (str(model), None if revision is None else str(revision))

    def with_draft(self, flags: dict[str, Any], folder: str) -> dict[str, Any]:
        """Return the flags with their draft model in this folder."""
        for flag, value in ((self.draft_revision, None), (self.draft, folder)):
            flags = with_value(flags, flag, value) if flag else flags
        return flags


@dataclass(frozen=True, kw_only=True)
class LogReading:
    """Patterns that read the engine's log. All but `prefix` are regular expressions to be found in it."""

    prefix: str = ""  # of a line, before its message: a regular expression for time, process, source file
    out_of_memory: tuple[str, ...] = ()  # where it ran out of memory, besides the ones in log_causes.yaml
    noise: tuple[str, ...] = ()  # in error lines that only point to another: not why it failed
    gpus_unused: tuple[str, ...] = ()  # where it serves without the GPUs that it was given
    dtype: str | None = None  # what "auto" came to; None: the stored weights' own
    choices: Mapping[str, str] = field(default_factory=dict)  # what it chose by itself, by the fact's name

    def message(self, line: str) -> str:
        """Return one line without the engine's own prefix, and without colours."""
        return re.sub(self.prefix, "", COLOUR.sub("", line).strip(), count=1).strip()

    def ran_out_of_memory(self, log: str) -> bool:
        """Return whether a log reports running out of memory."""
        patterns = (*cause_table().out_of_memory, *self.out_of_memory)
        return any(re.search(pattern, log, re.IGNORECASE) for pattern in patterns)

    def known_cause(self, words: str) -> KnownCause | None:
        """Return the cause that the engine's words tell; None for an unknown one."""
        table = cause_table()
        if cause := table.find(words):
            return cause
        return table.find("out of memory: CUDA out of memory") if self.ran_out_of_memory(words) else None

    def exit_told_by(self, words: str) -> Exit:
        """Return what the engine's own words tell of its end: its cause, or the signal that killed a part of it."""
        killed = re.search(r"killed by signal\b ?(\d*)", words, re.IGNORECASE)
        return replace(told(words), signal=int(killed[1] or 0) if killed else None)

    def failure_line(self, log: str) -> str:
        """The line of a failed engine's log that says why: a cause that is known, else an error, else the last line.

        Causes come before what follows from them: it is the first line with one, or the first error of the last
        traceback. Where memory ran out it is the last such line, which says what could not be loaded.
        """
        raw = [line for line in log.splitlines() if self.message(line)]
        lines = list(map(self.message, raw))
        causes = {
            i: cause
            for i, line in enumerate(lines)
            if (cause := self.known_cause(line)) and not HARMLESS.search(raw[i])
        }
        if causes:
            first, *_, last = *causes, *causes
            return lines[last if causes[first].whose == "memory" == causes[last].whose else first]
        table, noise = cause_table(), re.compile("|".join(self.noise) or "(?!)")
        reasons = [i for i, line in enumerate(lines) if not noise.search(line) and not table.is_symptom(line)]
        errors = [i for i in reasons if ERROR_LINE.search(lines[i])]
        if not errors:
            return lines[max(reasons or range(len(lines)))] if lines else ""
        tracebacks = [i for i, line in enumerate(lines) if line.startswith(TRACEBACK) and i < errors[-1]]
        chosen = next(i for i in errors if i > tracebacks[-1]) if tracebacks else errors[-1]
        line = lines[chosen]
        if ANNOUNCES.search(line):  # pydantic says on the next lines what was wrong
            line += " " + " ".join(lines[chosen + 1 :][:2]).partition(" [type=")[0]
        return line


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How to talk to the engine, beyond its YAML: paths, and keys of requests."""

    ready_path: str = "/health"  # answers with status 200 once it is ready
    version_path: str = "/version"  # serves a JSON object with its "version"
    show_ids: Mapping[str, Any] = field(default_factory=lambda: {"return_token_ids": True})  # make answers have ids
    show_special: Mapping[str, Any] = field(default_factory=dict)  # make answers' text show special tokens
    samples: bool = True  # by a request's temperature; False: it decodes greedily
    log_probabilities: LogProbabilitiesBy | None = None  # of a text's tokens; None: it gives none


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties and abilities of the engine."""

    distribution: str | None = None  # the Python distribution whose version is the engine's
    inherits: tuple[str, ...] = ()  # variables of this machine that it reads, besides INHERITED
    attachable: bool = False  # may be given the `url` of one that runs already
    needs_gpu: bool = False  # there is no build of it for a CPU
    most_gpus: int | None = None  # that one engine can use; None: as many as its tensor-parallel size says
    before_ampere: Literal["emulates", "refuses", "float16"] = "emulates"  # bfloat16, on GPUs without it
    reserves_memory: bool = False  # takes a pool at launch: what it holds says nothing about what it needs
    timed_inside: bool = False  # measured in its own process, without HTTP: see sweep/node/engine_timed.py
    computes_model: bool = True  # False: its answers are no model's, so there is nothing to compare
    # For readers of docs/backends.md, who choose by them; None: not stated.
    continuous_batching: bool | None = None
    beam_search: bool | None = None
    quantisations: str | None = None  # of the weights and of the KV cache
