"""The records in which a backend class describes its engine, independent of any configuration."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from backends.tables.flags import value_of, with_value
from backends.tables.log_causes import KnownCause, cause_table, reported_exit
from backends.tables.table import EngineTable, load, spelling
from sweep.base.exits import Exit
from sweep.base.masking import COLOUR

# Backend fields about how it is run, and model fields for estimates: they cannot change a result.
NOT_IN_ID = {"port", "launch_timeout", "stop_grace", "metric_names", "shape"}
NOT_IN_ID |= {"price_per_hour", "price_per_million_tokens", "auth_header", "auth_scheme"}
OTHER_CONFIGURATION = "model=path and model.path to a folder with that config.json"  # for another model's shape
RANDOM_WEIGHTS = "a model with random weights, e.g. model=random-llama-2-7b"
VLLM_BLOCK = r'vllm:cache_config_info\{[^}]*\bblock_size="(\d+)"'  # on the metrics page
ADDRESS_FLAGS = (  # flags for an engine's address and protocol: sweep reaches engines by HTTP on loopback
    *("host", "hostname", "server-name", "uds", "api-prefix", "grpc", "grpc-mode", "smg-grpc-mode"),
    *("ssl", "ssl-keyfile", "ssl-certfile", "ssl-key-file", "ssl-cert-file"),
)

# The final error line of a Python or C++ program: "ValueError: …", "x.py: error: unrecognized arguments …".
ERROR_LINE = re.compile(
    r"^[\w.]*(Error|Exception|Interrupt)\b|\berror:|^error\b|\b(fatal|failed)\b|\berror (response|loading)\b",
    re.IGNORECASE,
)
ANNOUNCES = re.compile(r"\d+ validation errors? for ")
# Signs that a line is not an error: its level, or a length that only a line of settings has.
LEVEL = re.compile(  # NCCL calls its errors warnings
    r"(?<!NCCL_DEBUG=)\b(DEBUG|INFO)\b|(?<!NCCL )(?<!NCCL_DEBUG=)\bWARN\b|[Ww]arning\b|WARNING"
    r"|^\d+\.\d\d\.\d{3}\.\d{3} [DIW] |^\[[\d/:-]+\] \[TRT-LLM\] (\[RANK \d+\] )?\[[DVIW]\]"
)
HARMLESS = re.compile(LEVEL.pattern + "|^.{1000}")
RANK = re.compile(r"^\[rank\d+\]: ?")
TRACEBACK = "Traceback (most recent call last)"

# A key of vLLM's requests; a key of SGLang's native route; a path of the in-process server; llama.cpp's grammars of
# token ids, which make it generate the text.
LogProbabilitiesBy = Literal["prompt_logprobs", "input_token_logprobs", "host", "token_grammar"]


@dataclass(frozen=True, kw_only=True)
class FlagRules:
    """The engine's flags: which exist, which only sweep sets, and which sweep interprets."""

    commands: tuple[str, ...] = ()  # words that start the engine on a command line, before the model and the flags
    tables: tuple[str, ...] = ()  # tables in backends/tables, per version or kind; the pinned version's is first
    option_tables: Mapping[str, str] = field(default_factory=dict)  # tables by the backend field whose keys they list
    newer: Mapping[str, str] = field(default_factory=dict)  # flag that the pinned version lacks -> first with it
    set_by: Mapping[str, str] = field(default_factory=dict)  # "flag" or "flag=value" -> the sweep key to set instead
    beyond: tuple[str, ...] = ()  # "flag" or "flag=value" that reaches beyond the leased nodes or GPUs
    parallel: tuple[str, ...] = ()  # flags that multiply an engine's GPUs: data, pipeline, context
    folded: tuple[str, ...] = ()  # flags with a JSON object whose keys may also be dotted flags, or flags in `short`
    short: Mapping[str, str] = field(default_factory=dict)  # flag -> the "flag.key" of `folded` that it sets
    draft: str | None = None  # "flag", or "flag.key" in a JSON object, that names a draft model
    draft_revision: str | None = None  # the same, for the draft's revision
    settled: tuple[str, ...] = ()  # flags whose final settings `Wire.version_path` reports

    @property
    def table(self) -> EngineTable | None:
        """Return the pinned version's flags, metrics, routes and messages, or None if there is no table."""
        return load(self.tables[0]) if self.tables else None

    def meanings(self, name: str) -> list[str]:
        """Return the flags that a (perhaps abbreviated) name may mean, in normalised spelling."""
        return self.table.meanings(name) if self.table else [spelling(name)]

    def _forms(self, name: str, value: object) -> list[str]:
        return [form for flag in self.meanings(name) for form in (flag, f"{flag}={value}")]

    def setter(self, name: str, value: object) -> str | None:
        """Return the sweep key to set instead of a (perhaps abbreviated) flag; None if the user may set the flag."""
        return next((self.set_by[form] for form in self._forms(name, value) if form in self.set_by), None)

    def reaches_beyond(self, name: str, value: object) -> bool:
        """Return whether a flag reaches beyond the deployment's nodes and GPUs."""
        return value not in (None, False) and not set(self.beyond).isdisjoint(self._forms(name, value))

    def in_one_spelling(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Return the flags in the engine's spelling, so that `max_num_seqs` and `max-num-seqs` give one trial id."""
        spelt: dict[str, Any] = {}
        for key, value in flags.items():
            meanings = self.meanings(key)
            if "trust-remote-code" in meanings or spelling(key).startswith("trust-remote"):
                raise ValueError(f"flags.{key}: running code that comes with a model is not supported")
            if not set(ADDRESS_FLAGS).isdisjoint(meanings):
                raise ValueError(f"flags.{key}: sweep reaches engines by HTTP on loopback, without a path prefix")
            name = self.table.canonical(key) if self.table else key
            if name in spelt:
                raise ValueError(f"flags.{key}: given twice, in different spellings")
            spelt[name] = value
        return self._with_objects(spelt)

    def _with_objects(self, flags: dict[str, Any]) -> dict[str, Any]:
        """Return the flags with each of `folded` as a mapping, even if given as JSON, or as dotted or short flags."""
        objects: dict[str, Any] = {}
        unrelated: dict[str, Any] = {}
        for flag, value in flags.items():
            head, parts = self._keys_of_object(flag, value)
            unrelated |= {} if parts else {flag: value}
            for path, part in parts.items():
                name = self.table.canonical(head) if self.table else head
                for key in reversed(path.split(".")):
                    part = {key: part}
                twice = f"flags.{flag}: {path} is given twice, in different spellings"
                objects[name] = _merged(objects.get(name, {}), part, twice)
        return unrelated | objects

    def _keys_of_object(self, flag: str, value: Any) -> tuple[str, dict[str, Any]]:
        """Return a flag of `folded` and the keys that `flag` sets in it; no keys for an unset or unrelated flag."""
        long = self.short.get(spelling(flag), flag) if value is not None else flag
        head, _, path = long.partition(".")
        head = spelling(head)
        if head not in self.folded:
            return head, {}
        if path:
            return head, {path: value}
        if isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value)
        return head, dict(value) if isinstance(value, Mapping) else {}

    def draft_model(self, flags: Mapping[str, Any]) -> tuple[str, str | None] | None:
        """Return the flags' draft model (a repository or folder) and its revision, or None if they name none."""
        model, revision = (value_of(flags, flag) if flag else None for flag in (self.draft, self.draft_revision))
        return None if model is None else (str(model), None if revision is None else str(revision))

    def with_draft(self, flags: dict[str, Any], folder: str) -> dict[str, Any]:
        """Return the flags with their draft model in this folder."""
        for flag, value in ((self.draft_revision, None), (self.draft, folder)):
            flags = with_value(flags, flag, value) if flag else flags
        return flags


def _merged(first: Any, second: Any, twice: str) -> Any:
    """Return two JSON objects as one. Raises ValueError with the text `twice` if a key has two values."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        raise ValueError(twice)
    common = {key: _merged(first[key], second[key], twice) for key in first.keys() & second.keys()}
    return {**first, **second, **common}


@dataclass(frozen=True, kw_only=True)
class LogReading:
    """Regular expressions that read the engine's log."""

    prefix: str = ""  # time, process and source file in front of a line's message
    out_of_memory: tuple[str, ...] = ()  # messages about exhausted memory, besides the patterns in log_causes.yaml
    noise: tuple[str, ...] = ()  # error lines that only refer to another line
    gpus_unused: tuple[str, ...] = ()  # messages that the engine serves without its GPUs
    dtype: str | None = None  # the dtype that "auto" chose; None: the stored weights' dtype
    choices: Mapping[str, str] = field(default_factory=dict)  # choices that the engine logs, by fact name

    def message(self, line: str) -> str:
        """Return a line without the engine's prefix and without colours."""
        return RANK.sub("", re.sub(self.prefix, "", COLOUR.sub("", line).strip(), count=1).strip())

    def ran_out_of_memory(self, log: str) -> bool:
        """Return whether a log reports running out of memory, in a line without another cause."""
        table = cause_table()
        pattern = re.compile("|".join((*table.out_of_memory, *self.out_of_memory)), re.IGNORECASE)
        lines = [line for line in log.splitlines() if pattern.search(line) and not HARMLESS.search(line)]
        return any((cause := table.find(line)) is None or cause.whose == "memory" for line in lines)

    def known_cause(self, message: str) -> KnownCause | None:
        """Return the known cause of failure that matches the engine's message, or None."""
        table = cause_table()
        if cause := table.find(message):
            return cause
        return table.find("out of memory: CUDA out of memory") if self.ran_out_of_memory(message) else None

    def exit_told_by(self, message: str) -> Exit:
        """Return the exit that the engine's message reports: its cause, or the signal that killed a process."""
        killed = re.search(r"killed by signal\b ?(\d*)", message, re.IGNORECASE)
        return replace(reported_exit(message), signal=int(killed[1] or 0) if killed else None)

    def failure_line(self, log: str) -> str:
        """Return the log line with the reason for an engine's failure: a known cause, else an error, else the last
        line. Causes come before their consequences, so the first line with a cause is taken, else the first error of
        the last traceback. If memory ran out, the last line that says so is taken: it names what could not be loaded.
        """
        raw = [line for line in log.splitlines() if re.search(r"\w", self.message(line))]
        lines = list(map(self.message, raw))
        for i, line in enumerate(lines):
            if ANNOUNCES.search(line):  # pydantic explains the error on the next lines
                lines[i] += " " + " ".join(lines[i + 1 : i + 3]).partition(" [type=")[0]
        causes = {
            i: cause
            for i, line in enumerate(lines)
            if not HARMLESS.search(raw[i]) and (cause := self.known_cause(line))
        }
        causes = {i: cause for i, cause in causes.items() if not cause.summary} or causes
        if causes:
            first, *_, last = *causes, *causes
            return lines[last if causes[first].whose == "memory" == causes[last].whose else first]
        noise, symptoms = re.compile("|".join(self.noise) or "(?!)"), re.compile(cause_table().symptoms, re.IGNORECASE)
        reasons = [i for i, line in enumerate(lines) if not noise.search(line) and not symptoms.search(line)]
        errors = [i for i in reasons if ERROR_LINE.search(lines[i])]
        errors = [i for i in errors if not LEVEL.search(raw[i])] or errors
        if not errors:
            return lines[max(reasons or range(len(lines)))] if lines else ""
        tracebacks = [i for i, line in enumerate(lines) if TRACEBACK in line and i < errors[-1]]
        return lines[next(i for i in errors if i > tracebacks[-1]) if tracebacks else errors[-1]]


@dataclass(frozen=True, kw_only=True)
class Wire:
    """Details of the engine's API that are not in its YAML: paths, and keys of requests."""

    ready_path: str = "/health"  # status 200 once the engine is ready; {model}: the served name
    version_path: str = "/version"  # path of a JSON object with its "version"
    prefix_block: str | None = None  # pattern of the metrics page: the tokens in a block of the prefix cache
    show_ids: Mapping[str, Any] = field(default_factory=lambda: {"return_token_ids": True})  # make answers include ids
    show_special: Mapping[str, Any] = field(default_factory=dict)  # makes answers' text include special tokens
    samples: bool = True  # whether it samples at a request's temperature; False: it decodes greedily
    log_probabilities: LogProbabilitiesBy | None = None  # source of a text's token log-probabilities; None: none


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The engine's properties and abilities."""

    distribution: str | None = None  # the Python distribution whose version is the engine's
    inherits: tuple[str, ...] = ()  # variables of this machine that it reads, in addition to INHERITED
    attachable: bool = False  # whether it can attach to the `url` of a running engine
    needs_gpu: bool = False  # True: it has no CPU build
    most_gpus: int | None = None  # maximum GPUs of one engine; None: its tensor-parallel size decides
    before_ampere: Literal["emulates", "refuses", "float16"] = "emulates"  # how it treats bfloat16 on GPUs that lack it
    reserves_memory: bool = False  # True: it reserves a pool at launch, so its memory use does not show what it needs
    timed_inside: bool = False  # measured in-process, without HTTP (sweep/node/engine_timed.py)
    computes_model: bool = True  # False: no model generates its answers, so answers cannot be compared
    # Abilities that docs/backends.md lists to help users choose; None: not listed.
    continuous_batching: bool | None = None
    beam_search: bool | None = None
    quantisations: str | None = None  # formats of weights and KV cache
