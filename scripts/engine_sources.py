"""Reads an engine's flags, metrics, routes and messages from its source, without importing the engine.

A reader takes the unpacked wheel or source distribution. `engine_tables.py` makes the committed tables from it.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from backends.tables.table import Flag, spelling

ROUTE_METHODS = {"get", "post", "put", "api_route", "add_api_route", "route", "mount", "Mount", "Route"}
CALLED = {"int": "int", "float": "float", "str": "str", "nonnegative_int": "int", "positive_int": "int"}
CALLED["typing.SupportsInt"] = "int"  # argument in the stub of a C++ extension
# Arguments of vLLM's parser that also accept 4k and 1M.
SIZES = {"human_readable_int", "human_readable_int_or_auto"}
SKIPPED = re.compile(r"(^|/)(tests?|benchmarks?|examples|models|layers|third_party)/")


@dataclass
class Reading:
    """The result of reading: a table's content."""

    flags: dict[str, Flag] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)  # other spellings that differ in more than - and _
    metrics: set[str] = field(default_factory=set)
    routes: set[str] = field(default_factory=set)

    def add(self, names: Iterable[str], flag: Flag, no: bool = False) -> None:
        """Add a flag by its command-line names, of which the first long one is used."""
        long = [spelt[2:] for spelt in names if spelt.startswith("--") and "{" not in spelt]
        if not long:
            return
        self.flags[long[0]] = flag
        self.aliases |= {spelling(spelt): long[0] for spelt in long[1:]}
        if no:
            self.flags["no-" + long[0]] = "bool"


class PythonSource:
    """The Python files of an unpacked wheel."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder, self.package = folder, package

    def defining(self, name: str, *under: str) -> ast.Module:
        """Return the file in which this version defines a class, or a function (perhaps within a class)."""
        definition = re.compile(rf"^(?:class|[ ]*def) {name}\b", re.MULTILINE)
        for path in self._paths(*under):
            if definition.search(content := path.read_text()):
                return ast.parse(content)
        raise SystemExit(f"error: {self.package}: no file defines {name}: its reader in engine_sources.py needs that")

    def trees(self, *under: str) -> Iterator[ast.Module]:
        """Yield the files in these files and folders, or in the whole package if this version has none of them."""
        return (ast.parse(path.read_text()) for path in self._paths(*under))

    def _paths(self, *under: str) -> Iterator[Path]:
        package = self.folder / self.package
        if present := [package / top for top in under if (package / top).exists()]:
            for top in present:
                yield from sorted(top.rglob("*.py")) if top.is_dir() else [top]
            return
        if under:
            print(f"{self.package}: {', '.join(under)} not there: all of it is read", file=sys.stderr)
        yield from (
            path for path in sorted(package.rglob("*.py")) if not SKIPPED.search(str(path.relative_to(self.folder)))
        )

    def constants(self, *under: str) -> dict[str, ast.expr]:
        """Return the module-level names of these files, for choices that refer to lists in other files."""
        names: dict[str, ast.expr] = {}
        for tree in self.trees(*under):
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    names.setdefault(node.targets[0].id, node.value)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                    names.setdefault(node.target.id, node.value)
        return names

    def metrics(self, prefix: str, *under: str) -> set[str]:
        """Return the names with this prefix; prometheus_client adds `_total` to a counter's name."""
        names = set()
        for tree in self.trees(*under):
            for node in ast.walk(tree):
                candidates, maker = _metric_names(node)
                for metric in filter(re.compile(re.escape(prefix) + r"\w+").fullmatch, map(_text_or_empty, candidates)):
                    names.add(metric + "_total" * ("counter" in maker.lower() and not metric.endswith("_total")))
        return names

    def routes(self, *under: str) -> set[str]:
        """Return the paths that are served."""
        paths = set()
        for tree in self.trees(*under):
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
                method = ast.unparse(call.func).rpartition(".")[2]
                route = _text(call.args[0])
                if method in ROUTE_METHODS and route and route.startswith("/"):
                    paths.add(route)
        return paths

    @cached_property
    def messages(self) -> list[str]:
        """Return every string in the source, with {} for inserted values."""
        return [message for tree in self.trees() for node in ast.walk(tree) if (message := _text(node))]


def _metric_names(node: ast.AST) -> tuple[list[ast.AST], str]:
    """Return the nodes that may name a metric, and what makes it: a call, or a list of names (`counter_specs`)."""
    if isinstance(node, ast.Call):
        return [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")], ast.unparse(node.func)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
        return list(ast.walk(node.value)), ast.unparse(node.targets[0])
    return [], ""


def _text_or_empty(node: ast.AST) -> str:
    return _text(node) or ""


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{}" for piece in node.values)
    return None


class Types:
    """Finds the kind of flag that an annotation or the arguments of `add_argument` define."""

    def __init__(self, constants: Mapping[str, ast.expr]) -> None:
        self.constants = constants

    def of_annotation(self, node: ast.expr) -> Flag:
        parts = [member for member in self._parts(node) if not _is_none(member)]
        names = {ast.unparse(member) for member in parts}
        if "bool" in names:
            return "bool" if names == {"bool"} else "any"
        literals = [member for member in parts if ast.unparse(member).startswith(("Literal[", "typing.Literal["))]
        if literals and "str" not in names:
            return list(dict.fromkeys(choice for member in literals for choice in self.choices(member) or []))
        if len(parts) != 1:
            return "any"
        member = parts[0]
        if isinstance(member, ast.Subscript):
            container = ast.unparse(member.value).rpartition(".")[2]
            if container.lower() in ("list", "tuple", "set", "sequence"):
                item = member.slice.elts[0] if isinstance(member.slice, ast.Tuple) else member.slice
                item_flag = self.of_annotation(item)
                return (
                    f"{item_flag}+" if isinstance(item_flag, str) and item_flag in ("int", "float", "str") else "any+"
                )
            return "json" if container.lower() == "dict" else "any"
        return CALLED.get(ast.unparse(member), "any")

    def _parts(self, node: ast.expr) -> list[ast.expr]:
        """Return the members of a union, however it is spelt, resolving aliases and Annotated."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return [*self._parts(node.left), *self._parts(node.right)]
        if isinstance(node, ast.Subscript):
            generic = ast.unparse(node.value).rpartition(".")[2]
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if generic == "Optional":
                return self._parts(inner[0])
            if generic == "Union":
                return [member for argument in inner for member in self._parts(argument)]
            if generic in ("Annotated", "A", "SkipValidation", "ClassVar"):
                return self._parts(inner[0])
        if isinstance(node, ast.Name) and node.id in self.constants and node.id not in CALLED:
            return self._parts(self.constants[node.id])
        return [node]

    def of_argument(self, keywords: Mapping[str, ast.expr]) -> Flag:
        """Return the kind of `add_argument(**keywords)`."""
        action = ast.unparse(keywords["action"]).strip("'\"").rpartition(".")[2] if "action" in keywords else ""
        if action.startswith("store_") or "StoreTrue" in action or action == "BooleanOptionalAction":
            return "bool"
        if "choices" in keywords:
            return self.choices(keywords["choices"]) or "any"
        if "action" in keywords and action != "append":
            return "any"
        type_name = ast.unparse(keywords["type"]).rpartition(".")[2] if "type" in keywords else "str"
        flag = "json" if type_name == "loads" else "size" if type_name in SIZES else CALLED.get(type_name, "any")
        nargs = _text(keywords["nargs"]) if "nargs" in keywords else None
        return f"{flag}+" if nargs in ("+", "*") else "any" if "nargs" in keywords else flag

    def choices(self, node: ast.expr) -> list[str] | None:
        """Return the allowed values; None if they are known only when the engine runs."""
        try:
            return list(dict.fromkeys(map(str, self._values(node))))
        except ValueError:
            return None

    def _values(self, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.Constant):
            return [node.value]
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [constant for element in node.elts for constant in self._values(element)]
        if isinstance(node, ast.Starred):
            return self._values(node.value)
        if isinstance(node, ast.Subscript):
            return self._values(node.slice)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return [*self._values(node.left), *self._values(node.right)]
        if isinstance(node, ast.Name) and node.id in self.constants:
            return self._values(self.constants[node.id])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("list", "sorted", "get_args", "tuple"):
            return self._values(node.args[0])
        raise ValueError(f"not a constant: {ast.unparse(node)[:80]}")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
            yield node


def _names(call: ast.Call) -> list[str]:
    return [word for argument in call.args if (word := _text(argument)) and word.startswith("-")]


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _add_call(reading: Reading, call: ast.Call, types: Types) -> None:
    keywords = _keywords(call)
    no = "action" in keywords and ast.unparse(keywords["action"]).endswith("BooleanOptionalAction")
    reading.add(_names(call), types.of_argument(keywords), no=no)


def _fields(tree: ast.AST, name: str) -> dict[str, ast.expr]:
    """Return the annotated fields of a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                statement.target.id: statement.annotation
                for statement in node.body
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            }
    return {}


def vllm(folder: Path) -> tuple[Reading, PythonSource]:
    """Read `vllm serve`: `add_argument("--x", **kwargs["x"])`, where kwargs come from a config class's fields."""
    source = PythonSource(folder, "vllm")
    types = Types(source.constants("config", "engine", "entrypoints", "model_executor/layers/quantization", "v1"))
    classes = {name: fields for tree in source.trees("config") for name, fields in _classes(tree).items()}
    reading, tree, frontend = Reading(), source.defining("EngineArgs"), source.defining("FrontendArgs")
    configs = dict(re.findall(r"^\s*(\w+) = get_kwargs\((\w+)\)", ast.unparse(tree), re.MULTILINE))
    sizes = _size_fields(tree)
    for call in _calls(tree, "add_argument"):
        spread = " ".join(ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None)
        match = re.search(r"(\w+)\['(\w+)'\]", spread)
        if not match:
            _add_call(reading, call, types)
            continue
        name = match[2]
        flag = types.of_annotation(classes.get(configs.get(match[1], ""), {}).get(name, ast.Constant(0)))
        reading.add(_names(call), "size" if name in sizes else flag, no=flag == "bool")
    for call in _calls(frontend, "add_argument"):
        _add_call(reading, call, types)
    customised = set(re.findall(r"frontend_kwargs\['(\w+)'\]", ast.unparse(frontend)))
    for name in ("BaseFrontendArgs", "FrontendArgs"):
        for key, annotation in _fields(frontend, name).items():
            flag = "any" if key in customised else types.of_annotation(annotation)
            reading.add([f"--{key.replace('_', '-')}"], flag, no=flag == "bool")
    reading.metrics = source.metrics("vllm:", "v1")
    reading.routes = source.routes("entrypoints")
    return reading, source


def _classes(tree: ast.AST) -> dict[str, dict[str, ast.expr]]:
    return {node.name: _fields(tree, node.name) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _size_fields(tree: ast.AST) -> set[str]:
    """Return the fields for which vLLM's `_compute_kwargs` accepts sizes such as 4k."""
    names = {"max_model_len"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "human_readable_int_args":
            names |= set(ast.literal_eval(node.value))
    return names


def vllm_offline(folder: Path) -> tuple[Reading, PythonSource]:
    """Read the fields of EngineArgs."""
    source = PythonSource(folder, "vllm")
    types = Types(source.constants("config", "engine", "model_executor/layers/quantization"))
    fields = _fields(source.defining("EngineArgs"), "EngineArgs")
    kinds = {metric: types.of_annotation(annotation) for metric, annotation in fields.items()}
    metrics = {metric.removeprefix("vllm:") for metric in source.metrics("vllm:", "v1")}
    return Reading(flags=kinds, metrics={f"host_{metric}" for metric in metrics}), source


def sglang(folder: Path) -> tuple[Reading, PythonSource]:
    """Read the fields that `add_cli_args_from_dataclass` turns into arguments, and arguments added by hand."""
    source = PythonSource(folder, "sglang")
    types = Types(source.constants("srt/arg_groups", "srt/server_args.py"))
    reading = Reading()
    for tree in source.trees("srt/arg_groups/fields"):
        for fields in _classes(tree).values():
            for name, annotation in fields.items():
                _add_sglang_field(reading, name, annotation, types)
    for call in _calls(source.defining("ServerArgs", "srt"), "add_argument"):
        _add_call(reading, call, types)
    reading.metrics = source.metrics("sglang:", "srt/observability")
    reading.routes = source.routes("srt/entrypoints/http_server.py", "srt/utils")
    return reading, source


def _add_sglang_field(reading: Reading, name: str, annotation: ast.expr, types: Types) -> None:
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "A"):
        return
    assert isinstance(annotation.slice, ast.Tuple)
    flag, marks = types.of_annotation(annotation), annotation.slice.elts[1:]
    keywords = next(
        (_keywords(mark) for mark in marks if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "Arg"), {}
    )
    if "no_cli" in keywords or not any(keywords or _text(mark) for mark in marks):
        return
    names = [_text(keywords["cli_name"]) if "cli_name" in keywords else f"--{name.replace('_', '-')}"]
    names += [_text(alias) for alias in getattr(keywords.get("aliases"), "elts", [])]
    if "choices" in keywords:
        flag = types.choices(keywords["choices"]) or "any"
    elif "type_parser" in keywords or "action" in keywords or "nargs" in keywords or flag == "json":
        flag = "any" if "List" not in ast.unparse(annotation) or "type_parser" in keywords else flag
    reading.add([name for name in names if name], flag)


def lmdeploy(folder: Path) -> tuple[Reading, "CompiledSource"]:
    """Read `lmdeploy serve api_server`: its parser's own arguments, and those from the helpers that it calls."""
    source = PythonSource(folder, "lmdeploy")
    types = Types(source.constants("cli"))
    reading = Reading()
    tree = source.defining("ArgumentHelper")
    helpers = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for function in ast.walk(source.defining("add_parser_api_server")):
        if not (isinstance(function, ast.FunctionDef) and function.name == "add_parser_api_server"):
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            owner, _, method = ast.unparse(call.func).rpartition(".")
            inner = _calls(helpers[method], "add_argument") if owner == "ArgumentHelper" and method in helpers else ()
            for argument in [call] if method == "add_argument" else inner:
                _add_call(reading, argument, types)
    reading.metrics = source.metrics("lmdeploy:", "metrics")
    reading.routes = source.routes("serve/openai")
    return reading, CompiledSource(folder, "lmdeploy")  # TurboMind is compiled


def generator_arguments(package: str, name: str) -> Callable[[Path], tuple[Reading, PythonSource]]:
    """Make a reader for ExLlama: the arguments of its generator, which the host passes on."""

    def read(folder: Path) -> tuple[Reading, PythonSource]:
        source = PythonSource(folder, package)
        reading, types = Reading(), Types({})
        for node in ast.walk(source.defining(name)):
            if isinstance(node, ast.ClassDef) and node.name == name:
                init = next(
                    member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"
                )
                arguments = [*init.args.args[1:], *init.args.kwonlyargs]
                for argument in arguments:
                    reading.flags[argument.arg] = (
                        types.of_annotation(argument.annotation) if argument.annotation else "any"
                    )
        return reading, source

    return read


def fields_of(package: str, name: str) -> Callable[[Path], tuple[Reading, PythonSource]]:
    """Make a reader for the fields of a dataclass."""

    def read(folder: Path) -> tuple[Reading, PythonSource]:
        source, types = PythonSource(folder, package), Types({})
        fields = _fields(source.defining(name), name)
        return Reading(flags={key: types.of_annotation(annotation) for key, annotation in fields.items()}), source

    return read


class CompiledSource:
    """The printable strings in a wheel's libraries, and its Python source."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder, self.python = folder, PythonSource(folder, package)

    @cached_property
    def messages(self) -> list[str]:
        texts = list(self.python.messages)
        for path in sorted(self.folder.rglob("*.so*")):
            texts += [message.decode() for message in re.findall(rb"[\x20-\x7e]{12,300}", path.read_bytes())]
        return texts


def ctranslate2(folder: Path) -> tuple[Reading, CompiledSource]:
    """Read the arguments of `Generator`; the extension states its signature when imported (on a CPU too)."""
    code = "import ctranslate2; print(ctranslate2.Generator.__init__.__doc__.splitlines()[0])"
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    answer = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    signature = ast.parse(re.sub(r"ctranslate2\._ext\.", "", f"def {answer.stdout.strip()}: ...")).body[0]
    assert isinstance(signature, ast.FunctionDef)
    types = Types({})
    arguments = [*signature.args.args[1:], *signature.args.kwonlyargs]
    flags = {
        argument.arg: types.of_annotation(argument.annotation) if argument.annotation else "any"
        for argument in arguments
    }
    return Reading(flags=flags), CompiledSource(folder, "ctranslate2")


def openvino(folder: Path) -> tuple[Reading, CompiledSource]:
    """Read the fields of `SchedulerConfig`, from the setters in the extension's stub, and the pipeline's argument."""
    (stub,) = folder.glob("openvino_genai/py_openvino_genai.pyi")
    tree, types = ast.parse(stub.read_text()), Types({})
    fields = _fields(tree, "SchedulerConfig")
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SchedulerConfig")
    for method in config.body:
        if isinstance(method, ast.FunctionDef) and (annotation := method.args.args[-1].annotation):
            fields[method.name] = annotation
    flags = {name: types.of_annotation(annotation) for name, annotation in fields.items()}
    return Reading(flags={**flags, "properties": "json"}), CompiledSource(folder, "openvino_genai")


class CppSource:
    """The C++ files of an unpacked source distribution."""

    def __init__(self, folder: Path, *under: str) -> None:
        self.files = [
            path.read_text(errors="replace")
            for top in under
            for path in sorted((folder / top).rglob("*"))
            if path.suffix in (".cpp", ".h", ".c", ".cu", ".cuh")
        ]

    def having(self, text: str) -> str:
        """Return the content of the files that contain this text, wherever this version has them."""
        return "\n".join(content for content in self.files if text in content)

    @cached_property
    def messages(self) -> list[str]:
        texts = []
        for content in self.files:
            joined = re.sub(r'"\s*\n\s*"', "", content)
            texts += [json_like.replace("\\n", " ") for json_like in re.findall(r'"((?:[^"\\\n]|\\.)*)"', joined)]
        return texts


OPTION = "add_opt(common_arg("
LAMBDA = re.compile(r"\[[^\]]*\]\(common_params ?&\s*\w*\s*(?:,\s*(?:const )?([\w:]+)[^)]*)?\)")
NAMES = re.compile(r'\{\s*"-[^{}]*\}')


def llamacpp(folder: Path) -> tuple[Reading, CppSource]:
    """Read `llama-server`: every server option in common/arg.cpp, and its routes and metrics."""
    source = CppSource(folder / "vendor/llama.cpp", "common", "tools/server", "ggml/src", "src")
    reading = Reading()
    for option in source.having(OPTION).split(OPTION)[1:]:
        examples, excluded = (re.search(rf"set_{word}\(\{{([^}}]*)\}}", option) for word in ("examples", "excludes"))
        if examples and not re.search(r"LLAMA_EXAMPLE_(COMMON|SERVER)\b", examples[1]):
            continue
        if excluded and "LLAMA_EXAMPLE_SERVER" in excluded[1]:
            continue
        signature = LAMBDA.search(re.sub(r"/\*.*?\*/", "", option))
        type_name = (signature[1] if signature else None) or ""
        flag: Flag = "bool" if type_name in ("", "bool") else "int" if type_name == "int" else "any"
        names = [re.findall(r'"([^"]+)"', group) for group in NAMES.findall(option.split("](common_params")[0])]
        for group in names:
            reading.add(group, flag)
    tasks, server = source.having("llamacpp:"), source.having("ctx_http.")
    reading.metrics = {f"llamacpp:{metric}" for metric in re.findall(r'\{\s*"([a-z_]+)",\s*"[A-Z]', tasks)}
    reading.metrics |= set(re.findall(r"llamacpp:\w+", tasks))
    reading.routes = set(re.findall(r'ctx_http\.(?:get|post) ?\(\s*"(/[^"]*)"', server))
    return reading, source


READERS: dict[str, Callable[[Path], tuple[Reading, Any]]] = {
    "vllm": vllm,
    "vllm_cuda12": vllm,
    "vllm_offline": vllm_offline,
    "vllm_offline_cuda12": vllm_offline,
    "sglang": sglang,
    "lmdeploy": lmdeploy,
    "llamacpp": llamacpp,
    "ctranslate2": ctranslate2,
    "openvino": openvino,
    "exllamav2": generator_arguments("exllamav2", "ExLlamaV2DynamicGenerator"),
    "transformers_cb": fields_of("transformers", "ContinuousBatchingConfig"),
    "exllamav3": generator_arguments("exllamav3", "Generator"),
}
