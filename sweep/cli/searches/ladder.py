"""Two command lines of an engine as one experiment: what each differing flag contributes, and which flags interact."""

import json
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from backends.declarations import ADDRESS_FLAGS, FlagRules
from backends.installed import configured, names
from sweep.base.config import ConfigError, content_hash, first_line
from sweep.base.options import ConfigPath
from sweep.base.setting_labels import short
from sweep.base.wording import count, flow
from sweep.cli.output import make_console
from sweep.plan.show import PIPE_WIDTH

if TYPE_CHECKING:
    from analysis.explain.decomposition import Explanation

NOT_SET_HERE = ("backend.port", "model.served_name", "backend.metrics_path")  # sweep chooses them
IGNORED = ("api-key-file", "ssl-keyfile", "ssl-certfile")  # flags that have no effect on speed either
MOST_CHANGES = 10  # settings that `sweep explain` takes apart
REPLICATES = 3
NUMERIC = re.compile(r"[+-]?(\d+|\d+\.\d*(e[+-]?\d+)?|\.\d+)", re.IGNORECASE)
DASHED = re.compile(r"-[^\d.]")  # begins a flag; -1 is a value

SweepKeys = Mapping[str, Any]  # by sweep's key
Changes = frozenset[str]  # keys whose settings are those of the second command


class EngineCommand(NamedTuple):
    """An engine's command line in sweep's terms."""

    backend: str
    settings: SweepKeys
    ignored: tuple[str, ...]  # flags that have no effect on speed


@dataclass(frozen=True)
class Differences:
    """The settings in which two commands of one engine differ, and the settings that they share."""

    backend: str
    shared: SweepKeys
    changed: Mapping[str, tuple[Any, Any]]  # settings of the first and of the second command; None: not set

    @property
    def one_at_a_time(self) -> list[Changes]:
        """The first command, each change alone, all but each change, and the second command."""
        every = frozenset(self.changed)
        single = [frozenset([key]) for key in self.changed]
        return list(dict.fromkeys([frozenset(), *single, *(every - key for key in single), every]))

    def experiment(self, combinations: Iterable[Changes]) -> dict[str, Any]:
        """Return the experiment that measures these combinations of changes."""
        measured = list(combinations)
        columns = {key: [pair[key in each] for each in measured] for key, pair in self.changed.items()}
        content: dict[str, Any] = {"defaults": [{"override /backend": self.backend}], "name": "ladder"}
        if "model" in self.shared:
            content["defaults"].append({"override /model": self.shared["model"]})
        for key, setting in self.shared.items():
            *groups, last = key.split(".", 2)
            inner = content
            for group in groups:
                inner = inner.setdefault(group, {})
            if groups:
                inner[last] = setting
        return content | {"replicates": REPLICATES, "zip": columns}


def measure_ladder(first: str, second: str, overrides: Sequence[str], folders: Sequence[str]) -> tuple[int, str | None]:
    """Measure the changes between two commands. Return the exit status, and the results to explain, if any.

    First each change is measured alone and each is left out; then the pairs of changes whose effects depend on others.
    Raises ConfigError for bad input.
    """
    from sweep.cli.run import run

    has_model = any(override.startswith("model=") for override in overrides)
    commands = [read_command("--from", first, has_model), read_command("--to", second, has_model)]
    differences = compared(*commands)
    out = next((override[4:] for override in overrides if override.startswith("out=")), None)
    out = out or f"results/ladder-{content_hash([first, second], 6)}"
    typed = shlex.join(["sweep", "ladder", "--from", first, "--to", second, *overrides])
    console = make_console(PIPE_WIDTH)
    for line in _opening(differences, commands):
        console.print(line, markup=False, soft_wrap=True)

    def measure(chosen: Sequence[Changes]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "experiment", "ladder.yaml")
            file.parent.mkdir()
            file.write_text("# @package _global_\n" + yaml.safe_dump(differences.experiment(chosen), sort_keys=False))
            return run(["+experiment=ladder", f"out={out}", *overrides], [*folders, folder], command=typed)

    singles = differences.one_at_a_time
    status = measure(singles)
    if "dry_run=true" in overrides or status not in (0, 1):
        return status, None
    pairs = [pair for pair in interacting(_explained(out), list(differences.changed)) if pair not in singles]
    if pairs:
        console.print(f"ladder: {count(len(pairs), 'pair')} of changes may interact and will be measured", markup=False)
        status = measure([*singles, *pairs])
    return status, out


def _opening(differences: Differences, commands: Sequence[EngineCommand]) -> Iterator[str]:
    ignored = sorted({flag for command in commands for flag in command.ignored})
    if ignored:
        yield f"ladder: ignored, since they do not change the speed: {', '.join(ignored)}"
    for key, pair in differences.changed.items():
        old, new = ("unset" if setting is None else flow(setting) for setting in pair)
        yield f"ladder: {key}: {old} → {new}"


def _explained(out: str) -> "list[Explanation]":
    """Return the explanations of a run; empty if the gain cannot be explained (`sweep explain` prints why)."""
    from analysis import open_results
    from analysis.explain.decomposition import explanations
    from sweep.disk.stored_run import run_place

    results = open_results(run_place(out))
    with suppress(ConfigError):
        return explanations(results.run, results.layout)
    return []


def interacting(explained: "Iterable[Explanation]", keys: Sequence[str]) -> list[Changes]:
    """Return the pairs to measure: pairs of changes whose effect on any explained quantity depends on other changes.

    If only one change is known to depend on others, it is paired with each.
    """
    parts = [part for explanation in explained for part in explanation.parts]
    dependent = {part.name for part in parts if part.dependence.low > 1 or part.dependence.high < 1}
    dependent_keys = [key for key in keys if short(key) in dependent]
    partners = dependent_keys if len(dependent_keys) > 1 else keys
    return [frozenset(pair) for pair in combinations(partners, 2) if set(pair) & set(dependent_keys)]


# Commands ------------------------------------------------------------------------------------------------------------


def compared(before: EngineCommand, after: EngineCommand) -> Differences:
    """Return what differs. Raises ConfigError if the two are not comparable, or do not differ."""
    if before.backend != after.backend:
        raise ConfigError(f"--to: {after.backend}; expected {before.backend}, the engine of --from")
    keys = dict.fromkeys([*before.settings, *after.settings])
    pairs = {key: (before.settings.get(key), after.settings.get(key)) for key in keys}
    backend = configured(before.backend)
    for key in ("dtype", "gpus", "slots"):  # always set
        default = getattr(backend, key, None)
        if (setting := pairs.get(f"backend.{key}")) is not None:
            pairs[f"backend.{key}"] = tuple(default if each is None else each for each in setting)  # type: ignore[assignment]
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if task := [key for key in changed if key.startswith("model")]:
        raise ConfigError(f"--to: {task[0]} differs from --from; expected the same, since it changes the task")
    if not changed:
        raise ConfigError("--to: expected a command that differs from --from in at least one flag")
    if len(changed) > MOST_CHANGES:
        raise ConfigError(f"--to: differs from --from in {len(changed)} settings; expected {MOST_CHANGES} or fewer")
    return Differences(before.backend, {key: pair[0] for key, pair in pairs.items() if key not in changed}, changed)


def read_command(option: str, command: str, has_model: bool) -> EngineCommand:
    """Return a command line such as `vllm serve MODEL --max-num-seqs 64`. Raises ConfigError, naming the option.

    With `has_model`, the model of the command line is ignored, since another model is given.
    """
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; expected an engine's command line") from None
    environ = {}
    while arguments and re.match(r"[A-Za-z_]\w*=", arguments[0]):
        name, _, environ[name] = arguments.pop(0).partition("=")
    backend, rules, rest = _engine(option, arguments)
    settings: dict[str, Any] = {f"backend.environ.{name}": setting for name, setting in environ.items()}
    flags, ignored = dict[str, Any](), list[str]()
    for flag, setting in _flags(option, rules, rest):
        key = rules.setter(flag, setting) if flag else "model"
        if "api-key" in rules.meanings(flag or "model"):  # the command line is recorded
            raise ConfigError(f"{option}: --api-key: expected no key; engines that sweep launches need none")
        if key == "model":
            settings |= {} if has_model else _model(option, setting)
        elif key in NOT_SET_HERE or set(rules.meanings(flag)) & {*ADDRESS_FLAGS, *IGNORED}:
            ignored.append(f"--{flag}")
        elif key is None:
            flags[flag] = setting
        elif re.fullmatch(r"(backend|model)\.\w+", key):
            settings[key] = setting
        else:
            raise ConfigError(f"{option}: --{flag}: set by sweep; expected {key}")
    if not has_model and "model" not in settings:
        raise ConfigError(f"{option}: expected a model in the command line, or model=NAME after the options")
    try:
        spelt = rules.in_one_spelling(flags)
    except ValueError as error:
        raise ConfigError(f"{option}: {first_line(error)}") from None
    return EngineCommand(backend, settings | {f"backend.flags.{name}": spelt[name] for name in spelt}, tuple(ignored))


def _engine(option: str, arguments: Sequence[str]) -> tuple[str, FlagRules, list[str]]:
    """Return the engine that a command line starts, and the arguments after its name."""
    commands = {start: name for name in reversed(names()) for start in configured(name).flag_rules.commands}
    line = " ".join(word.rpartition("/")[2] if not place else word for place, word in enumerate(arguments))
    for start, name in sorted(commands.items(), key=lambda item: -len(item[0])):
        if match := re.match(rf"(?:\S*python[\d.]* -m )?{re.escape(start)}(?= |$)", line):
            return name, configured(name).flag_rules, list(arguments[len(match[0].split()) :])
    expected = ", ".join(sorted(commands))
    raise ConfigError(f"{option}: {' '.join(arguments[:2]) or 'empty'}: unknown engine; expected: {expected}")


def _flags(option: str, rules: FlagRules, arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the flags of a command line; a word without a flag has an empty name, and is the model."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not DASHED.match(word):
            yield "", word
            continue
        flag, has_setting, setting = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not flag:
            raise ConfigError(f"{option}: {word}: expected the long form of a flag, such as --max-num-seqs")
        kind = _value_type(rules, flag)
        if has_setting:
            yield flag, _setting(setting)
        elif kind == "bool" or not rest or DASHED.match(rest[0]):
            yield flag, True
        elif kind.endswith("+"):
            several = [_setting(rest.pop(0))]
            while rest and not DASHED.match(rest[0]):
                several.append(_setting(rest.pop(0)))
            yield flag, several
        else:
            yield flag, _setting(rest.pop(0))


def _value_type(rules: FlagRules, flag: str) -> str:
    kinds = rules.table.flags if rules.table else {}
    kind = kinds.get(rules.table.canonical(flag) if rules.table else flag, "any")
    return kind if isinstance(kind, str) else "str"


def _setting(word: str) -> Any:
    """Return a word as a number or a JSON object, or else as text."""
    if NUMERIC.fullmatch(word) or word[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(word)
    return word


def _model(option: str, model: Any) -> SweepKeys:
    if Path(str(model)).is_dir():
        return {"model": "path", "model.path": str(Path(str(model)).resolve()), "model.name": Path(str(model)).name}
    if Path(str(model)).exists() or str(model).count("/") != 1:
        choices = ", ".join(ConfigPath().choices("model"))
        raise ConfigError(f"{option}: {model}: expected a folder, a repository, or model=NAME ({choices})")
    return {"model": "hub", "model.repo": str(model), "model.name": str(model).partition("/")[2]}
