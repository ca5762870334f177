"""The keys that a user may set, with values and meanings, read from the YAML files and the classes they configure."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from sweep.base.config import CONF, Cluster, Hardware, Settings, Tracking, locate
from sweep.base.options import PRIMARY, ConfigPath

CLASSES: dict[str, type[BaseModel]] = {"": Settings, "cluster": Cluster, "hardware": Hardware, "tracking": Tracking}
KEY_LINE = re.compile(r"^( *)([\w-]+):(.*)$", re.MULTILINE)


class Key(NamedTuple):
    """A key as written on a command line."""

    name: str  # with dots: backend.dtype
    value: Any  # default value
    meaning: str
    allowed: tuple[str, ...]  # possible values; empty if there are many


def keys_of(options: ConfigPath, group: str = "", option: str = PRIMARY) -> list[Key]:
    """Return the keys of an option of a config group; by default the keys of conf/config.yaml, which every run has."""
    loaded = options.load(group, option) if group else yaml.safe_load((CONF / f"{PRIMARY}.yaml").read_text())
    values = {key: value for key, value in loaded.items() if key not in ("defaults", "name")}
    target = values.pop("_target_", None)
    kind = CLASSES[group] if group in CLASSES else locate(str(target), group)
    hidden = {"name", *(CLASSES if not group else ())}
    # A class's specific keys come before the keys of its bases.
    for base in kind.__mro__:
        for name in inspect.get_annotations(base):
            if name in kind.model_fields and name not in values | dict.fromkeys(hidden):
                values[name] = _default(kind.model_fields[name])
    meanings = _meanings_of_fields(kind) | _meanings_in_yaml(options, group, option)
    prefix = f"{group}." if group else ""
    return [
        Key(f"{prefix}{name}", value, meanings.get(name, ""), _allowed(kind, name))
        for name, value in _flattened(values, meanings)
    ]


def _default(field: FieldInfo) -> Any:
    return "???" if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True))


def _flattened(values: Mapping[str, Any], meanings: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values; a mapping is split if any of its keys has a meaning."""
    for name, value in values.items():
        if isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in meanings):
            yield from ((f"{name}.{inner}", value[inner]) for inner in value)
        else:
            yield name, value


def _meanings_in_yaml(options: ConfigPath, group: str, option: str) -> dict[str, str]:
    """Return the comments after the keys of an option's file, and of the files that it extends."""
    files = (folder / group / f"{option}.yaml" for folder in options.folders)
    text = next(file.read_text() for file in files if file.is_file())
    bases = yaml.safe_load(text).get("defaults", []) if group else []
    meanings: dict[str, str] = {}
    for base in bases:
        if isinstance(base, str) and base != "_self_":
            meanings |= _meanings_in_yaml(options, group, base)
    return meanings | _comments(text)


@functools.cache
def _meanings_of_fields(kind: type[BaseModel]) -> dict[str, str]:
    """Return the comments after the fields of a class and its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(BaseModel)]):
        meanings |= _comments(inspect.getsource(base))
    return {name: meaning for name, meaning in meanings.items() if name in kind.model_fields}


def _comments(text: str) -> dict[str, str]:
    """Return the comments after the keys of a YAML file or the fields of a class, by dotted name."""
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for indent, name, rest in KEY_LINE.findall(text):
        parents = [parent for parent in parents if parent[0] < len(indent)] + [(len(indent), name)]
        if comment := rest.partition(" # ")[2].strip():
            comments[".".join(name for _, name in parents)] = comment
    return comments


def _allowed(kind: type[BaseModel], name: str) -> tuple[str, ...]:
    field = kind.model_fields.get(name)
    annotation = field.annotation if field is not None else None
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    values = [value for part in parts if typing.get_origin(part) is Literal for value in typing.get_args(part)]
    return tuple(map(str, values)) + (("true", "false") if bool in parts else ())
