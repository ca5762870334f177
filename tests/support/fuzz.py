"""Random command lines and experiment files, and the verdict that the documentation passes on each.

`SETTINGS`, `POINTS` and `LOADS`, what each key takes, are written from docs/experiments.md, conf/config.yaml and the
comments in conf, not from the code that checks. `python -m benchmarks.fuzz` writes the table; tests/cli/test_fuzz.py
runs a few.
"""

import contextlib
import io
import itertools
import json
import math
import random
import signal
import string
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from sweep.__main__ import main

Verdict = Literal["accepted", "refused", "either"]
HANG = 10  # s
LONGEST_ERROR = 1000  # characters
ECHOED = 80  # characters of a value in an error
LARGEST = 10**9  # number that a key takes, unless it says otherwise
HUGE = (10**10, -(10**12), 1e30, 1e308)
NO_NUMBER: tuple[Any, ...] = (True, False, math.inf, -math.inf, math.nan, "many", {"a": 1})
PACKAGE = "# @package _global_\n"


class Number(NamedTuple):
    """The numbers that a key takes."""

    low: float
    high: float = LARGEST
    whole: bool = True
    null: bool = False
    open_low: bool = False

    def good(self, chance: random.Random) -> Any:
        high = min(self.high, max(self.low + 1, 400))
        if self.whole:
            return chance.randint(int(self.low), int(high))
        return None if self.null and chance.random() < 0.1 else round(chance.uniform(self.low, high), 3) or high

    def bad(self, chance: random.Random) -> Any:
        below = [self.low - 1, -1e6] + ([self.low] if self.open_low else [])
        above = [self.high * 2] if self.high < LARGEST else [*HUGE]
        odd = [*NO_NUMBER, *([] if self.null else [None]), *([2.5] if self.whole and self.low < 2.5 else [])]
        return chance.choice([*odd, chance.choice(below), chance.choice(above)])


class Choice(NamedTuple):
    """The words that a key takes."""

    words: tuple[str, ...]

    def good(self, chance: random.Random) -> Any:
        return chance.choice(self.words)

    def bad(self, chance: random.Random) -> Any:
        return chance.choice(["nope", 3, True, 2.5, math.inf, {"a": 1}, chance.choice(self.words) + "x"])


class Flag(NamedTuple):
    """True or false."""

    def good(self, chance: random.Random) -> Any:
        return chance.random() < 0.5

    def bad(self, chance: random.Random) -> Any:
        return chance.choice(["maybe", 17, 2.5, math.inf, math.nan, {"a": 1}, None])


class Some(NamedTuple):
    """Values that a key takes, and some that it does not."""

    taken: tuple[Any, ...]
    refused: tuple[Any, ...]

    def good(self, chance: random.Random) -> Any:
        return chance.choice(self.taken)

    def bad(self, chance: random.Random) -> Any:
        return chance.choice(self.refused)


COUNT, SECONDS = Number(1), Number(0, whole=False, open_low=True)
NOT_NEGATIVE, SHARE = Number(0, whole=False), Number(0, 1, whole=False)
MILLION = Number(1, 10**6)
SETTINGS: dict[str, Any] = {
    "replicates": Number(1, 10_000),
    "attempts": COUNT,
    "stall_timeout": SECONDS,
    "trial_timeout": SECONDS._replace(null=True),
    "patience": NOT_NEGATIVE,
    "telemetry_interval": SECONDS,
    "max_failed": Number(0, 0.99, whole=False),
    "retry": Choice(("in_run", "next_run", "none")),
    "relaunch": Choice(("auto", "once", "per_replicate")),
    "metrics": Choice(("sweep", "vllm")),
    "retry_failed": Flag(),
    "details": Flag(),
    "fresh": Flag(),
    "deadline": Some((None, "08:00", "2030-01-01T08:00"), ("25:00", "soon", 480, True, math.inf, "2030-13-01T08:00")),
    "slo": Some(
        ({"ttft": "500ms"}, {"tpot.p90": "0.1s", "e2el": "9s"}),
        ({"ttft": True}, {"itl": "1s"}, {"ttft": math.inf}, {"ttft": 0.5}, 3, True),
    ),
    "percentiles": Some(([50, 99.9], [1]), ([0], [100], [True], [math.nan], [], 50, "median", [[5]])),
    "gate": Some(
        ({"quality": 0.98},), ({"quality": 2}, {"quality": True}, {"speed": 0.5}, 0.9, {"agreement": math.nan})
    ),
    "client.processes": Some((1, 4, "auto"), (0, -1, 2.5, True, "all", math.inf)),
    "client.timeouts.connect": Number(0, 4200, whole=False, open_low=True),
    "client.timeouts.total": Number(0, 4200, whole=False, open_low=True),
    "name": Some(("a", "night 1", "x-1.2"), ("", "../x", "a/b", " x", {"a": 1})),
    "cluster.simulate": Some(
        ({"nodes": 2, "gpus": 4}, {"nodes": 1, "gpus": 0}),
        ({"nodes": 10**9, "gpus": 1}, {"nodes": True, "gpus": 1}, {"nodes": 1}, {"nods": 1, "gpus": 1}, 3, True),
    ),
    "hardware.price_per_hour": SECONDS._replace(null=True),
    "baseline": Some((None,), (3, True, {"nope": 1}, {"load.rate": 3}, "vllm")),
}
POINTS: dict[str, Any] = {
    "workload.input_tokens": COUNT,
    "workload.output_tokens": COUNT,
    "workload.num_requests": COUNT,
    "backend.itl.mean": NOT_NEGATIVE,
    "backend.ttft.mean": NOT_NEGATIVE,
    "backend.faults.reset": SHARE,
    "backend.tokens_per_event": COUNT,
    "backend.startup_seconds": NOT_NEGATIVE,
    "backend.kv_cache_tokens": COUNT,
    "backend.gpus": COUNT,
    "backend.port": Number(1, 65535, null=True),
    "backend.launch_timeout": SECONDS,
    "backend.stop_grace": SECONDS,
    "backend.always_500": Flag(),
    "backend.ttft.kind": Choice(("constant", "lognormal", "bursty")),
}
LOADS: dict[str, dict[str, Any]] = {
    "batch": {"load.batch_size": MILLION, "load.discard_first": Flag(), "load.duration": SECONDS._replace(null=True)},
    "closed": {"load.concurrency": MILLION, "load.think_time": NOT_NEGATIVE, "load.stagger": NOT_NEGATIVE},
    "poisson": {"load.rate": SECONDS, "load.max_concurrency": MILLION._replace(null=True)},
    "constant": {"load.rate": SECONDS},
    "gamma": {"load.rate": SECONDS, "load.burstiness": SECONDS},
    "ramp": {"load.rate_from": NOT_NEGATIVE, "load.rate_to": SECONDS},
}
BASE = (
    "backend=simulated",
    "model=tiny-llama",
    "workload=synthetic",
    "tracking=none",
    "cluster=inline",
    "hardware=cpu",
)
GROUPS = ("backend", "model", "workload", "load", "gateway", "hardware", "cluster", "tracking")
AXES = ("load.batch_size", "workload.input_tokens", "workload.output_tokens", "backend.tokens_per_event")
ADDRESSES = (
    "",
    ":",
    "::",
    "127.0.0.1:-1",
    "127.0.0.1:99999",
    "a" * 300 + ":6379",
    "h:0",
    "ray://",
    "1.2.3.4",
    "x:y",
    "h:1e3",
)
TARGETS = ("1", "os.system", "..", "pydantic.BaseModel", "x")
LADDERS: tuple[Any, ...] = (3, True, [3], {"a": 1}, [{"set": {}}], [{"step": "a", "parent": "b"}], [{"stp": "a"}])
DURATIONS: tuple[Any, ...] = (
    *(3, True, {"cpu": {"trial": 1}}),
    {"cpu": {"machine": "x", "launches": {}, "trial": True}},
)
RANGES = ("range(1,2,0)", "range(1,nan)", "range(1,1e17)", "range(5,1)", "range(1,inf)", "range(0,100002)", "range(1)")


class Case(NamedTuple):
    """A command line, perhaps with an experiment file, and its verdict by the documentation."""

    kind: str  # a row of the table
    arguments: list[str]
    verdict: Verdict
    names: str = ""  # a part of the refusal: the key that it must name
    trials: int | None = None  # of the plan, where it is accepted
    file: str | None = None  # the experiment, conf/experiment/fuzz.yaml


class Finding(NamedTuple):
    """A case, the exit status, and what is wrong with the outcome, if anything."""

    case: Case
    status: int | None
    problem: str | None
    error: str
    seconds: float


class Hang(BaseException):
    """The time of a case is over."""


# Command lines -------------------------------------------------------------------------------------------------------


def command_line(chance: random.Random) -> Case:
    load = chance.choice(list(LOADS))
    keys = SETTINGS | POINTS | LOADS[load]
    base = [*BASE, f"load={load}"]
    return chance.choices(
        [_good_line, _bad_value, _bad_key, _odd_line, _garbage, _other_command], [20, 35, 10, 15, 12, 8]
    )[0](chance, base, keys)


def _good_line(chance: random.Random, base: list[str], keys: dict[str, Any]) -> Case:
    names = chance.sample(sorted(keys), chance.randint(1, 5))
    typed = {key: keys[key].good(chance) for key in names if key != "replicates"}
    trials = typed["replicates"] = chance.randint(1, 4)
    for key in chance.sample(AXES[1:], chance.randint(0, 2)):
        values = chance.sample(range(1, 300), chance.randint(2, 4))
        typed[key], trials = values, trials * len(values)
    arguments = [f"{key}={_axis(value) if key in AXES else hydra(value)}" for key, value in typed.items()]
    chance.shuffle(arguments)
    return Case("settings as documented", [*base, *arguments], "accepted", trials=trials)


def _bad_value(chance: random.Random, base: list[str], keys: dict[str, Any]) -> Case:
    key = chance.choice(sorted(keys))
    value = keys[key].bad(chance)
    extra = [f"{other}={hydra(keys[other].good(chance))}" for other in chance.sample(sorted(keys), 2) if other != key]
    named = key.partition(".")[0]
    return Case("a value that the key does not take", [*base, *extra, f"{key}={hydra(value)}"], "refused", named)


def _bad_key(chance: random.Random, base: list[str], keys: dict[str, Any]) -> Case:
    key = chance.choice(sorted(keys))
    typo = _typo(chance, key)
    while typo in keys or (typo.startswith("backend.") and typo.count(".") > 1):
        typo = _typo(chance, chance.choice(sorted(keys)))
    prefix = chance.choice(["", "", "+", "++"])
    return Case("a key with a typing error", [*base, f"{prefix}{typo}=1"], "refused", typo.rpartition(".")[2])


def _odd_line(chance: random.Random, base: list[str], keys: dict[str, Any]) -> Case:
    group, setting = chance.choice(GROUPS), chance.choice(sorted(SETTINGS))
    key = chance.choice(sorted(POINTS))
    odd: list[tuple[str, str]] = [
        (f"load.{'batch_size' if 'load=batch' in base else 'duration'}={chance.choice(RANGES)}", "load."),
        (f"{setting}=1,2", setting),
        (f"{group}@x={chance.choice(['batch', 'none'])}", group),
        (f"{group}=nope", group),
        (f"{group}={hydra(chance.choice(NO_NUMBER))}", group),
        (f"~{key}", key),
        (f"hydra.{chance.choice(['mode', 'sweeper', 'run.dir'])}=1", "hydra"),
        (f"_target_={chance.choice(['1', 'os.system', '..'])}", "_target_"),
        (f"{chance.choice(GROUPS[:4])}._target_={chance.choice(TARGETS)}", "_target_"),
        (f"grid={hydra(chance.choice([3, True, {'nope.x': [1]}, {'load.nope': [1]}, {'seed': [1, 2]}, [1]]))}", ""),
        (f"zip={hydra(chance.choice([3, True, {1: 2}, {'load.duration': [1, 2], 'workload.input_tokens': [1]}]))}", ""),
        (f"when={hydra(chance.choice([3, True, {'load.duration': 3}, {'load.duration': {'nope': 1}}]))}", ""),
        (f"exclude={hydra(chance.choice([3, True, [{'nope': 1}], [3], [{'load.rat': 5}]]))}", ""),
        (f"ladder={hydra(chance.choice(LADDERS))}", ""),
        (f"without_gpu={hydra(chance.choice([3, True, {'true': False}, {'nope': 1}, {'nam': 3}, [1]]))}", ""),
        (f"durations={hydra(chance.choice(DURATIONS))}", ""),
        (f"+experiment={chance.choice(['nope', '../x', '1,2', 'null', ''])}", "experiment"),
        (f"workload.input_tokens={'9' * chance.choice([20, 400, 5000])}", "workload"),
        (f"workload.input_tokens={'[' * 400}1{']' * 400}", "workload"),
        (f"cluster.labels={hydra(chance.choice([3, True, [1], 'x']))}", "cluster"),
        (f"cluster.address={hydra(chance.choice(ADDRESSES))}", "cluster"),
        (f"trial_timeout={'1' * 100}", "trial_timeout"),
    ]
    argument, names = chance.choice(odd)
    end = ["cluster=ray"] if argument.startswith("cluster.address") else []
    return Case("grammar, groups, plan keys, addresses", [*base, argument, *end], "refused", names)


def _garbage(chance: random.Random, base: list[str], keys: dict[str, Any]) -> Case:
    letters = chance.choice([string.printable.strip(), "[]{}()',=:~+@$.*\\\" 0é\udcff", string.ascii_letters + "=.,"])
    text = "".join(chance.choice(letters) for _ in range(chance.choice([1, 3, 10, 40, 200, 2000])))
    key = chance.choice(sorted(keys))
    argument = chance.choice([text, f"{key}={text}", f"{text}={chance.randint(0, 9)}", f"{key}={text},{text}"])
    if argument in COMMAND_WORDS or argument.startswith("--config"):
        argument = "x"
    return Case("noise", [*base, argument], "either")


COMMAND_WORDS = ("-h", "--help", "help")
COMMANDS_WITH_BAD_INPUT: tuple[Callable[[str], list[str]], ...] = (
    lambda text: ["status", text],
    lambda text: ["report", text],
    lambda text: ["report", "nowhere", "--metrics", text],
    lambda text: ["compare", text, text],
    lambda text: ["compare", text, "b", "--fail-if", text],
    lambda text: ["compare", "a", "b", "--margin", text],
    lambda text: ["studies", text],
    lambda text: ["backends", text],
    lambda text: ["backends", "--on", text],
    lambda text: ["backends", "install", text],
    lambda text: ["wandb", text],
    lambda text: ["selfcheck", "--streams", text],
    lambda text: ["selfcheck", "--itl", "x" + text],
    lambda text: ["gateway", "--port", "x" + text],
    lambda text: ["gateway", "--to", "http://127.0.0.1:1", text],
    lambda text: ["copy", text, "there"],
    lambda text: ["completion", text],
    lambda text: ["--config-dir", text, "backend=simulated", "cluster=inline", "dry_run=true"],
    lambda text: [text],
)


def _other_command(chance: random.Random, base: list[str], keys: dict[str, Any]) -> Case:
    odd = [
        "",
        "nope",
        "a" * 300,
        "0",
        "-1",
        "nan",
        "inf",
        "../..",
        "@",
        "x@y=",
        "1e400",
        "é",
        "x=\udcff",
        "{}",
        "[" * 50,
    ]
    arguments = chance.choice(COMMANDS_WITH_BAD_INPUT)(chance.choice(odd))
    return Case("other commands", arguments, "either" if arguments == [""] else "refused")


def _typo(chance: random.Random, key: str) -> str:
    place = chance.randrange(1, len(key))
    letter = chance.choice(string.ascii_lowercase)
    typo = chance.choice([key[:place] + key[place + 1 :], key[:place] + letter + key[place:], key + letter])
    return typo if typo.strip(".") == typo and ".." not in typo else key + letter


# Experiments ---------------------------------------------------------------------------------------------------------


def experiment(chance: random.Random) -> Case:
    content, trials = _good_experiment(chance)
    make = chance.choices([_as_is, _bad_setting, _bad_plan, _bad_text, _corrupted], [20, 25, 25, 15, 15])[0]
    return make(chance, content, trials)


def _good_experiment(chance: random.Random) -> tuple[dict[str, Any], int]:
    """The content of a file that is as documented, and the number of trials that it means."""
    axes = {key: chance.sample(range(1, 200), chance.randint(1, 4)) for key in chance.sample(AXES, 3)}
    first, second, third = axes
    content: dict[str, Any] = {
        "defaults": [
            f"override /{group}: {option}" for group, option in (base.split("=") for base in (*BASE, "load=batch"))
        ],
        "name": "fuzz",
        "replicates": chance.randint(1, 3),
        "grid": {first: axes[first], second: axes[second]},
    }
    content["defaults"] = [dict([entry.split(": ")]) for entry in content["defaults"]]
    points = len(axes[first]) * len(axes[second])
    shape = chance.choice(["plain", "zip", "ladder", "exclude", "when", "without_gpu", "grammar"])
    if shape == "zip":
        length = chance.randint(1, 3)
        content["zip"] = {third: chance.sample(range(1, 99), length), "backend.itl_per_sequence": list(range(length))}
        points *= length
    elif shape == "ladder":
        values = chance.sample(range(1, 99), chance.randint(1, 4))
        content["ladder"] = [{"step": f"s{index}", "set": {third: value}} for index, value in enumerate(values)]
        points *= len(values)
    elif shape == "exclude" and len(axes[first]) > 1:
        content["exclude"] = [{first: axes[first][0]}]
        points -= len(axes[second])
    elif shape == "when":
        content["when"] = {first: {second: axes[second][0]}}
        points = len(axes[first]) + len(axes[second]) - 1
    elif shape == "without_gpu":
        content["without_gpu"] = {"replicates": 2}
    elif shape == "grammar":
        content["grid"][first] = f"range(1,{len(axes[first]) + 1})"
    for key in chance.sample(["stall_timeout", "retry", "max_failed", "slo", "percentiles", "patience"], 2):
        content[key] = SETTINGS[key].good(chance)
    return content, points * (2 if shape == "without_gpu" else content["replicates"])


def _as_is(chance: random.Random, content: dict[str, Any], trials: int) -> Case:
    return _file_case("as documented", PACKAGE + yaml.safe_dump(content, sort_keys=False), "accepted", trials=trials)


def _bad_setting(chance: random.Random, content: dict[str, Any], trials: int) -> Case:
    key = chance.choice([key for key in sorted(SETTINGS) if "." not in key])
    content[key] = SETTINGS[key].bad(chance)
    content.pop("without_gpu", None)  # which may replace it
    return _file_case("a value that the key does not take", PACKAGE + yaml.safe_dump(content), "refused", key)


def _bad_plan(chance: random.Random, content: dict[str, Any], trials: int) -> Case:
    key, axis = (
        _typo(chance, chance.choice(["replicates", "baseline", "exclude", "ladder", "grid"])),
        chance.choice(AXES),
    )
    content.pop("without_gpu", None)
    changes: list[dict[str, Any]] = [
        {key + "q": 3},
        {"grid": chance.choice([3, True, [1], {"nope.x": [1]}, {"seed": [1, 2]}, {1: 2}, {"load.": [1]}])},
        {"grid": {f"{axis}x": [1]}},
        {"grid": {axis: [(POINTS | LOADS["batch"])[axis].bad(chance)]}},
        {"grid": {axis: []}},
        {"grid": {axis: chance.choice(["range(1,2,0)", "range(1,1e17)", "choice()", "1,[", "range(1,nan)"])}},
        {"grid": {AXES[0]: "range(1,2000)", AXES[1]: "range(1,2000)"}},
        {"grid": {axis: [1, 2]}, "zip": {axis: [1, 2]}},
        {"zip": chance.choice([3, True, [3], {axis: [1, 2], "load.duration": [1]}, {"nope": [1]}])},
        {"ladder": chance.choice(LADDERS)},
        {"ladder": [{"step": "a", "set": {axis: True}}]},
        {"when": chance.choice([3, True, [1], {axis: 3}, {axis: {"nope": 1}}])},
        {"exclude": chance.choice([3, True, [3], [{"nope": 1}], [{}]])},
        {"baseline": chance.choice([3, True, {"nope": 1}, {"load.rate": 1}, [1], "x"])},
        {
            "without_gpu": chance.choice(
                [3, True, [1], {"nope": 1}, {"grid": 3}, {"replicates": True}, {"hardwar": "x"}]
            )
        },
        {"hydra": {"mode": "RUN"}},
        {"_target_": "os.system"},
        {"load": 3},
        {"load": {"batch_sise": 3}},
        {"model": {"_target_": chance.choice(["os.system", 3, "x", "..", None])}},
        {"defaults": [*content["defaults"], {"override /load": "nope"}]},
        {"defaults": [*content["defaults"], {"override /nope": "batch"}]},
        {"defaults": chance.choice([3, True, ["nope"], [3], [[]]])},
        {"replicates": 10_000, "grid": {axis: "range(1,200)"}},
    ]
    return _file_case(
        "a plan key that means nothing", PACKAGE + yaml.safe_dump(content | chance.choice(changes)), "refused"
    )


def _bad_text(chance: random.Random, content: dict[str, Any], trials: int) -> Case:
    text = PACKAGE + yaml.safe_dump(content, sort_keys=False)
    bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    texts: list[tuple[str, Verdict]] = [
        (text.removeprefix(PACKAGE), "refused"),
        (text + "grid: {}\n", "refused"),
        (text + "hydra: {mode: RUN}\n", "refused"),
        (text + f"baseline: {'[' * 3000}{']' * 3000}\n", "refused"),
        (text + f"baseline: {'{a: ' * 500}1{'}' * 500}\n", "refused"),
        (f"{PACKAGE}a0: &a0 [1]\n{bomb}", "refused"),
        (text.replace("name: fuzz", "name: ${nope}"), "refused"),
        (text.replace("name: fuzz", "name: ${name}"), "refused"),
        (text.replace("name: fuzz", "name: '${oc.env:HOME}'"), "either"),
        (text.replace("name: fuzz", "name: ${"), "refused"),
        (text + "cache_dir: ${nope.x}\n", "refused"),
        (text + "? [a, b]\n: 3\n", "refused"),
        (text + "1: 2\n", "refused"),
        (text + "true: 2\n", "refused"),
        (text + "null: 2\n", "refused"),
        (text + "deadline: 2026-01-01\n", "either"),
        (text + "deadline: 20:10\n", "refused"),
        (text + f"cache_dir: {'x' * 5000}\n", "refused"),
        (text + "trial_timeout: !!python/object/apply:os.system [ls]\n", "refused"),
        (text + "trial_timeout: 1e400\n", "refused"),
        (text + "seed: 0x7fffffffffffffffffffffff\n", "either"),
        ("[1, 2]\n", "refused"),
        ("3\n", "refused"),
        ("", "either"),
        (PACKAGE, "either"),
        ("\x00\x01", "refused"),
        ("---\na: 1\n---\nb: 2\n", "refused"),
    ]
    changed, verdict = chance.choice(texts)
    return _file_case("YAML of the odd kind", changed, verdict)


def _corrupted(chance: random.Random, content: dict[str, Any], trials: int) -> Case:
    text = PACKAGE + yaml.safe_dump(content, sort_keys=False)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        place, length = chance.randrange(len(text)), chance.choice([0, 1, 3, 30])
        noise = "".join(chance.choice(":-[]{}#&*!|>'\"%@`,? \n\t0aé\x07") for _ in range(chance.choice([0, 1, 3])))
        text = text[:place] + noise + text[place + length :]
    return _file_case("a file with noise in it", text, "either")


def _file_case(kind: str, text: str, verdict: Verdict, names: str = "", trials: int | None = None) -> Case:
    return Case(f"file: {kind}", ["+experiment=fuzz"], verdict, names, trials, text)


# The judge -----------------------------------------------------------------------------------------------------------


def cases(seed: int, make: Callable[[random.Random], Case]) -> Iterator[Case]:
    """An endless stream of cases, each from a seed of its own."""
    return (make(random.Random(f"{seed}/{make.__name__}/{number}")) for number in itertools.count())


def complete(case: Case, folder: Path) -> list[str]:
    """The command line of a case, which starts nothing; the experiment's file lies in the folder by then."""
    if case.file is not None:
        path = folder / "conf" / "experiment" / "fuzz.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(case.file, encoding="utf-8", errors="surrogateescape")
        return ["--config-dir", str(folder / "conf"), *case.arguments, f"out={folder}/out", "dry_run=true"]
    if case.kind == "other commands":
        return case.arguments
    return [*case.arguments, f"out={folder}/out", "dry_run=true"]


def check(case: Case, folder: Path) -> Finding:
    arguments, output, error = complete(case, folder), io.StringIO(), io.StringIO()
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(HANG)
    begin, status, crash = time.monotonic(), None, None
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            status = main(arguments)
    except Hang:
        crash = f"still running after {HANG} s"
    except SystemExit as end:
        crash = f"SystemExit({end.code})"
    except Exception:  # noqa: BLE001 - a traceback is what is looked for
        crash = traceback.format_exc().strip().splitlines()[-1]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = time.monotonic() - begin
    if seconds >= HANG:  # the signal may have been caught on its way
        crash = f"still running after {HANG} s"
    problem = crash or judge(case, arguments, status, output.getvalue(), error.getvalue())
    return Finding(case, status, problem, error.getvalue(), seconds)


def judge(case: Case, arguments: list[str], status: int | None, output: str, error: str) -> str | None:
    """What is wrong with how a command ended; None if nothing is."""
    if "Traceback" in error or status not in (0, 2):
        return f"exit status {status}: {error.strip().splitlines()[-1:]}"
    if status == 0 and case.verdict == "refused":
        return "accepted, against the documentation"
    if status == 2:
        if case.verdict == "accepted":
            return "refused, against the documentation"
        if error.count("\n") != 1 or not error.startswith("error: "):
            return f"{error.count(chr(10))} lines instead of one"
        if len(error) > LONGEST_ERROR:
            return f"an error of {len(error)} characters"
        if case.names not in error:
            return f"the error does not name {case.names}"
        values = (argument.partition("=")[2] for argument in arguments)
        if any(len(value) > ECHOED and "/" not in value and value[: ECHOED + 1] in error for value in values):
            return "the whole of a long value is echoed"
    elif case.trials is not None and f" {case.trials} trial" not in output:
        return f"not a plan of {case.trials} trials"
    return None


def _hang(*arguments: object) -> None:
    raise Hang


def hydra(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(hydra(inner) for inner in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value) if isinstance(value, float) else json.dumps(value)


def _axis(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else hydra(value)
