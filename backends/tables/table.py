"""The table of one engine version, made by scripts/engine_tables.py: flags, metrics, routes and messages."""

import re
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from sweep.base.config import Strict, nearest

FOLDER = Path(__file__).resolve().parent
# bool: a bare flag. size: 4096, 4k or auto. json: an object. any: an unknown kind of value.
# A `+` means that the flag takes several values. A list holds the only valid values.
Flag = str | list[str]
KINDS = ("bool", "int", "float", "str", "size", "json", "any")
SIZE_VALUE = re.compile(r"-1|auto|\d+(\.\d+)?[kKmMgGtT]?")


def spelling(name: str) -> str:
    """Return a flag's normalised spelling: `max_num_seqs` becomes `max-num-seqs`."""
    return name.replace("_", "-").lstrip("-")


class EngineTable(Strict):
    """The flags, metrics, routes and messages of one engine version."""

    engine: str
    version: str
    source: str  # what the table was made from: a pip requirement, or a repository's tag
    distributions: tuple[str, ...]  # the Python distributions of this engine, if any
    flags: Mapping[str, Flag]
    aliases: Mapping[str, str] = {}
    metrics: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()  # log messages, with their placeholders

    @cached_property
    def names(self) -> dict[str, str]:
        """The flags by normalised spelling, including aliases."""
        return {**self.aliases, **{spelling(name): name for name in self.flags}}

    def canonical(self, name: str) -> str:
        """Return a flag's primary name in the engine's style (dashes or underscores)."""
        first, dot, rest = name.partition(".")  # vLLM also accepts each key of a JSON flag
        if full := self.names.get(spelling(first)):
            return full + dot + rest
        style = "_" if sum("_" in flag for flag in self.flags) > sum("-" in flag for flag in self.flags) else "-"
        return spelling(first).replace("-", style) + dot + rest

    def meanings(self, name: str) -> list[str]:
        """Return the flags that a name may mean, normalised: the flag itself, an alias's flag, or abbreviated flags."""
        return [spelling(each) for each in (name, self.names.get(spelling(name), name), *self.abbreviated(name))]

    def abbreviated(self, name: str) -> list[str]:
        """Return the flags to which an argument parser could expand an unknown name."""
        name = spelling(name)
        return [] if name in self.names else sorted({self.names[each] for each in self.names if each.startswith(name)})

    def takes_text(self, name: str) -> bool:
        """Return whether a flag takes any text, such as a module's name, or is unknown."""
        flag = self.flags.get(self.names.get(spelling(name.partition(".")[0]), ""), "any")
        return isinstance(flag, str) and flag.removesuffix("+") in ("str", "json", "any")

    def problem(self, name: str, value: Any) -> str | None:
        """Return briefly why the engine would reject a flag; None if it would not."""
        flag = self.flags.get(self.names.get(spelling(name.partition(".")[0]), ""))
        if flag is None:
            intended = self.abbreviated(name) or filter(None, [nearest(spelling(name), self.names)])
            names = " or ".join(list(intended)[:3])
            return f"unknown flag of {self.engine} {self.version}" + (f"; did you mean {names}?" if names else "")
        if value is None or value is False or "." in name:
            return None
        many = isinstance(flag, str) and flag.endswith("+")
        for each in value if many and isinstance(value, list) else [value]:
            if allowed := _refused(flag, each):
                return f"expected by {self.engine} {self.version}: {allowed}"
        return None


def _refused(flag: Flag, value: Any) -> str | None:
    """Return a description of the expected value; None if the value is valid."""
    if isinstance(flag, list):
        return None if str(value) in flag else ", ".join(flag)
    match flag.removesuffix("+"):
        case "bool":
            return None if value is True else "true, or false to omit it"
        case "int":
            return None if re.fullmatch(r"[+-]?\d+", str(value)) else "a whole number"
        case "float":
            return None if _is_number(value) else "a number"
        case "size":
            return None if value is not True and SIZE_VALUE.fullmatch(str(value)) else "a number such as 4096 or 4k"
        case "json":
            return None if isinstance(value, dict | list | str) else "a mapping"
        case "str":
            return "a text" if value is True else None
        case _:
            return None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


@cache
def load(name: str) -> EngineTable:
    """Return the table of an engine."""
    return EngineTable.model_validate_json((FOLDER / f"{name}.json").read_text())
