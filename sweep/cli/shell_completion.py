"""Shell completion: the script that a shell reads once, and the words that it requests at every Tab."""

from collections import ChainMap
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from sweep.base.config import CONF, GROUPS
from sweep.base.options import PRIMARY, ConfigPath
from sweep.cli.keys import keys_of

SHELLS = ("bash", "zsh", "fish")
SCRIPTS = {shell: Path(__file__).with_name(f"completion.{shell}").read_text("utf-8").rstrip("\n") for shell in SHELLS}


def candidates(commands: Iterable[str], line: Sequence[str], options: ConfigPath) -> list[str]:
    """Return the possible completions of the last word after `sweep`."""
    *before, current = line or [""]
    matches: list[str] = []
    match before[:1]:
        case ["status" | "report" | "compare" | "rerun" | "studies" | "wandb"]:
            matches = [str(path.parent) for path in Path("results").glob("*/plan.jsonl")]
        case ["backends"]:
            matches = [*(["install"] if len(before) == 1 else ()), *options.choices("backend")]
        case ["completion"]:
            matches = list(SCRIPTS)
        case ["copy"]:
            pass
        case first:
            matches = [*(() if first else commands), *_overrides(options, before, current)]
    return [word for word in matches if word.startswith(current)]


def _overrides(options: ConfigPath, before: Sequence[str], current: str) -> list[str]:
    """Return overrides that start with the current word: values after `=`, otherwise keys."""
    name, equals, value = current.partition("=")
    allowed = {group: options.choices(group) for group in GROUPS} | {"+experiment": options.choices("experiment")}
    group = name.partition(".")[0] if "." in name else ""
    # The keys of the option chosen on the line, else of the option in conf/config.yaml.
    defaults = yaml.safe_load((CONF / f"{PRIMARY}.yaml").read_text())["defaults"]
    chosen = dict(ChainMap(*(entry for entry in defaults if isinstance(entry, dict))))
    chosen |= dict(word.split("=", 1) for word in before if "=" in word)
    keys = keys_of(options, group, chosen[group].partition(",")[0]) if group in GROUPS else keys_of(options)
    allowed |= {key.name: list(key.allowed) for key in keys}
    if equals:
        typed = value[: value.rfind(",") + 1]  # the values of an axis before the one being typed
        return [f"{name}={typed}{choice}" for choice in allowed.get(name, ())]
    return ["--config-dir", *(f"{key}=" for key in allowed)]
