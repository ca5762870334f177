"""The table of an engine and version, by scripts/engine_tables.py: flags, metrics, routes and messages."""

import json
import re
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from sweep.base.config import Strict, nearest

FOLDER = Path(__file__).resolve().parent
# bool: a bare flag. size: 4096, 4k or auto. json: an object. any: a value of which nothing is known.
# With a `+` it takes several. A list: exactly these values.
Flag = str | list[str]
KINDS = ("bool", "int", "float", "str", "size", "json", "any")
SIZE_VALUE = re.compile(r"-1|auto|\d+(\.\d+)?[kKmMgGtT]?")


def spelling(name: str) -> str:
    """Return the one spelling of a flag, in which `max_num_seqs` and `max-num-seqs` are equal."""
    return name.replace("_", "-").lstrip("-")


class EngineTable(Strict):
    """The flags, metrics, routes and messages of one version of an engine."""

    engine: str
    version: str
    source: str  # what was read: a requirement of pip's, or the tag of a repository, whose names are then data
    distributions: tuple[str, ...]  # the Python distributions that are this engine, if it is any
    flags: Mapping[str, Flag]
    aliases: Mapping[str, str] = {}
    metrics: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()  # of its log, with its placeholders

    @cached_property
    def names(self) -> dict[str, str]:
        """Its flags by their one spelling, aliases included."""
        return {**self.aliases, **{spelling(name): name for name in self.flags}}

    def canonical(self, name: str) -> str:
        """Return a flag as the engine first calls it, in its style, with dashes or underscores."""
        first, dot, rest = name.partition(".")  # vLLM takes the keys of JSON flags one by one
        if full := self.names.get(spelling(first)):
            return full + dot + rest
        style = "_" if sum("_" in flag for flag in self.flags) > sum("-" in flag for flag in self.flags) else "-"
        return spelling(first).replace("-", style) + dot + rest

    def meanings(self, name: str) -> list[str]:
        """Return the flags that a name may stand for, in one spelling: itself, its alias's, those it abbreviates."""
        return [spelling(each) for each in (name, self.names.get(spelling(name), name), *self.abbreviated(name))]

    def abbreviated(self, name: str) -> list[str]:
        """Return the flags that an argument parser would expand this unknown name to."""
        name = spelling(name)
        return [] if name in self.names else sorted({self.names[each] for each in self.names if each.startswith(name)})

    def takes_text(self, name: str) -> bool:
        """Return whether a flag takes any text, such as a module's name, or is unknown."""
        flag = self.flags.get(self.names.get(spelling(name.partition(".")[0]), ""), "any")
        return isinstance(flag, str) and flag.removesuffix("+") in ("str", "json", "any")

    def problem(self, name: str, value: Any) -> str | None:
        """Return why the engine would refuse a flag, in half a line, or None."""
        flag = self.flags.get(self.names.get(spelling(name.partition(".")[0]), ""))
        if flag is None:
            intended = self.abbreviated(name) or filter(None, [nearest(spelling(name), self.names)])
            names = " or ".join(list(intended)[:3])
            return f"{self.engine} {self.version} has no such flag" + (f"; did you mean {names}?" if names else "")
        if value is None or value is False or "." in name:
            return None
        many = isinstance(flag, str) and flag.endswith("+")
        for each in value if many and isinstance(value, list) else [value]:
            if allowed := _refused(flag, each):
                return f"expected by {self.engine} {self.version}: {allowed}"
        return None


def _refused(flag: Flag, value: Any) -> str | None:
    """Return what was expected, in words, if the value is wrong."""
    if isinstance(flag, list):
        return None if str(value) in flag else ", ".join(flag)
    match flag.removesuffix("+"):
        case "bool":
            return None if value is True else "true, or false to leave it out"
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


def file_text(table: EngineTable) -> str:
    """Return a table in its file format: a line for each name, so that a new version's differences can be read."""
    content = table.model_dump(mode="json")
    parts = []
    for key, value in content.items():
        if isinstance(value, dict):
            items = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in sorted(value.items())]
            parts.append(f"{json.dumps(key)}: {{{_lines(items)}}}")
        elif isinstance(value, list) and key != "distributions":
            parts.append(f"{json.dumps(key)}: [{_lines(list(map(json.dumps, sorted(value))))}]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _lines(items: list[str]) -> str:
    return "".join(f"\n  {item}," for item in items).removesuffix(",") + ("\n " if items else "")
