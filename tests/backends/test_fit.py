"""What would be installed on nodes of every driver and GPU, through the commands: the fitting build, or why not."""

import dataclasses
import sys

import pytest

from backends.base import EnvironmentChoice, EnvironmentSpec, Host, Launch
from backends.installed import configured
from backends.launch import host_facts
from backends.launch.engine_environment import engine_environment
from backends.launch.host_facts import EXECUTABLES
from backends.prepare import fit
from backends.prepare.environments import resolve
from scripts import hosts_table
from sweep.__main__ import main

DRIVERS, CAPABILITIES = ("550.54.15", "570", "580.65"), ("7.5", "8.0", "8.9", "9.0")
# Environment by backend with a driver before 580, and from then on; None: refused.
ENVIRONMENTS = {
    "ctranslate2": ("ctranslate2", "ctranslate2"),
    "exllama": ("exllamav3_cuda12", "exllamav3"),
    "llamacpp": ("llamacpp_cuda12", "llamacpp_cuda"),
    "lmdeploy": ("lmdeploy_cuda12", "lmdeploy"),
    "sglang": (None, "sglang"),
    "tensorrt_llm": (None, "tensorrt_llm"),
    "transformers": ("transformers_cuda12", "transformers"),
    "transformers_4bit": ("transformers_cuda12", "transformers"),
    "transformers_8bit": ("transformers_cuda12", "transformers"),
    "transformers_cb": ("transformers_cuda12", "transformers"),
    "vllm": (None, "vllm"),
    "vllm_gptq": (None, "vllm"),
    "vllm_offline": (None, "vllm"),
}


def planned(capsys, facts: str) -> dict[str, str]:
    """The lines of `sweep backends --on`, by backend."""
    assert main(["backends", "--on", facts]) == 0
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the document is for Python 3.11")
def test_the_document_of_hosts_is_as_the_code_is():
    assert hosts_table.DOCUMENT.read_text() == hosts_table.document(), "run: PYTHONPATH=. python scripts/hosts_table.py"


def test_the_nodes_python_decides_the_lock(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "Python 3.10, CUDA 13 (not locked yet)" in planned(capsys, "driver=580,python=3.10")["vllm"]
    assert "not locked yet" not in planned(capsys, "driver=580,python=3.12")["vllm"]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_every_engine_on_every_driver_and_gpu(driver, capability, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = not driver.startswith("580")
    lines = planned(capsys, f"driver={driver},capability={capability},nvcc={12.4 if old else 13.0}")
    for name, environments in ENVIRONMENTS.items():
        expected = environments[0 if old else 1]
        if name == "tensorrt_llm" and capability == "7.5" and not old:
            assert lines[name].startswith("no: environment tensorrt_llm: its kernels need GPUs of compute")
        elif expected is None:
            assert "which needs NVIDIA driver 580 or newer, but the node has" in lines[name]
            assert "update the driver" in lines[name]
        else:
            assert lines[name].startswith(f"environment {expected}: ")
            assert ("CUDA 12" if old or name == "ctranslate2" else "CUDA 13") in lines[name]
    assert ("backend.env.cuda=vllm_cuda12" in lines["vllm"]) == old
    assert ("backend.env.cuda=sglang_image" in lines["sglang"]) == old
    image = "environment tgi: image ghcr.io/huggingface/text-generation-inference:3.3.7 (not locked yet), about 15 GB"
    assert lines["tgi"] == image
    assert ("torch 2.10.0" if old else "torch 2.13.0") in lines["transformers"]
    assert "instead of environment transformers: built for CUDA 13" in lines["transformers"] or not old


@pytest.mark.parametrize(
    ("facts", "name", "words"),
    [
        ("driver=550,nvcc=13.0", "llamacpp", "no: environment llamacpp_cuda: built for CUDA 13"),
        ("driver=580,glibc=2.31", "sglang", "its wheels need glibc 2.34 or newer, but the node has 2.31"),
        ("driver=580,glibc=2.31", "vllm", "environment vllm: vllm 0.32.0, torch 2.13.0, CUDA 13"),
        ("driver=470", "transformers", "built for CUDA 13, which needs NVIDIA driver 580"),
        ("capability=7.0", "vllm", "no: environment vllm: its kernels need GPUs of compute capability 7.5 or newer"),
        (
            "driver=580",
            "tensorrt_llm",
            "tensorrt-llm 1.2.1, Python 3.12, CUDA 13 (not locked yet: NVIDIA's guide also requires",
        ),
    ],
)
def test_other_facts_of_a_node(facts, name, words, capsys):
    assert words in planned(capsys, facts)[name]


@pytest.mark.parametrize("facts", ["drivers=550", "driver=new", "driver"])
def test_bad_facts_are_one_line(facts, capsys):
    assert main(["backends", "--on", facts]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_program_that_is_missing_is_said_with_its_remedy():
    spec = EnvironmentSpec(name="x", requirements=("a",), needs={"mpirun": "install OpenMPI"})
    assert fit.problem(spec, Host(gpus=("NVIDIA L4",))) == "needs mpirun on PATH: install OpenMPI"
    assert fit.problem(spec, Host(executables=frozenset(EXECUTABLES))) is None


@pytest.mark.parametrize("name", ["vllm", "vllm_cuda12", "sglang", "lmdeploy", "lmdeploy_cuda12"])
def test_an_engine_that_compiles_at_first_use_needs_a_compiler_and_pythons_headers(name, monkeypatch):
    spec = resolve(EnvironmentChoice(cuda=name), "cuda")
    for missing in ("cc", "Python.h"):
        node = Host(executables=frozenset(EXECUTABLES) - {missing})
        assert (fit.problem(spec, node) or "").startswith(f"needs {missing}")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert "cc" not in host_facts.host().executables
    monkeypatch.setenv("CC", sys.executable)
    assert "cc" in host_facts.host().executables


@pytest.mark.parametrize(("driver", "passed"), [("550", True), ("580", False)])
def test_an_image_gets_the_variables_that_an_older_driver_needs(driver, passed, tmp_path):
    spec = resolve(EnvironmentChoice(cuda="vllm_image"), "cuda", host=Host(gpus=("NVIDIA L4",), driver=driver))
    its = Launch(model=tmp_path, served_name="m", workdir=tmp_path, gpus=("0",), environ=spec.environ)
    variables = engine_environment(configured("vllm"), its, "marker")
    assert variables.get("VLLM_ENABLE_CUDA_COMPATIBILITY") == ("1" if passed else None)


@pytest.mark.parametrize(("free", "status"), [(3.0, 2), (16.0, 0)])
def test_what_does_not_fit_on_the_disk_is_said_before_it_is_fetched(free, status, tmp_path, capsys, monkeypatch):
    """Sizes are rounded: where it may still fit, the plan only warns."""
    monkeypatch.setattr(host_facts, "free_disk", lambda folder: int(free * 10**9))
    words = ["backend=vllm", "model=random-llama-2-7b", "workload=qa", "cluster=inline", "hardware=cpu", "dry_run=true"]
    assert main([*words, f"out={tmp_path}/out", f"cache_dir={tmp_path}/cache"]) == status
    printed = capsys.readouterr()
    (line,) = [line for line in (printed.out + printed.err).splitlines() if "GB of disk free" in line]
    assert f"{free} GB of disk free, but about 4 GB of engines and 13.5 GB of weights must be written" in line


@pytest.mark.slow
def test_a_run_with_nothing_to_write_needs_no_room(tmp_path, capsys, monkeypatch):
    """Its weights are gone with its cache, and nobody needs them again; a further trial does."""
    quick = "backend=simulated model=tiny-llama workload=qa workload.num_requests=4 agreement=false report=false"
    words = [*quick.split(), *f"cluster=inline tracking=none hardware=cpu out={tmp_path}/out".split()]
    assert main([*words, f"cache_dir={tmp_path}/cache"]) == 0
    monkeypatch.setattr(host_facts, "free_disk", lambda folder: 1000)
    elsewhere = f"cache_dir={tmp_path}/elsewhere"
    assert [main([*words, elsewhere, *dry]) for dry in ([], ["dry_run=true"])] == [0, 0]
    before = (tmp_path / "out/ledger.jsonl").read_bytes()
    for more in (["replicates=2"], ["replicates=2", "dry_run=true"], ["fresh=true"]):
        assert main([*words, elsewhere, *more]) == 2, more
        assert "GB of disk free" in capsys.readouterr().err
    assert (tmp_path / "out/ledger.jsonl").read_bytes() == before, "nothing moved aside, nothing begun"


def test_what_is_compiled_by_the_nodes_compiler_is_for_its_cuda():
    spec = EnvironmentSpec(name="x", requirements=("a",), needs={"nvcc": "install it"})
    node = Host(gpus=("NVIDIA L4",), executables=frozenset(EXECUTABLES), driver="550", nvcc="13.0")
    assert "built for CUDA 13, which needs NVIDIA driver 580" in (fit.problem(spec, node) or "")
    assert fit.problem(spec, dataclasses.replace(node, nvcc="12.4")) is None


def test_torch_for_any_cuda_is_that_of_the_driver():
    spec = EnvironmentSpec(name="mine", requirements=("torch",), torch="cuda")
    for driver, cuda in (("570.1", 12), ("580", 13), (None, None)):
        assert fit.for_driver(spec, Host(gpus=("NVIDIA L4",), driver=driver)).cuda == cuda


def plan(tmp_path, capsys, *more: str, **node: str) -> str:
    facts = "".join(f", {name}: '{value}'" for name, value in node.items())
    simulated = f"cluster.simulate={{nodes: 1, gpus: 1, accelerator: L4{facts}}}"
    common = ["model=tiny-llama", "workload=qa", "hardware=l4", "tracking=none", "dry_run=true", f"out={tmp_path}/out"]
    assert main([*common, simulated, f"cache_dir={tmp_path}/cache", *more]) == 0
    return capsys.readouterr().out


def test_the_plan_refuses_in_one_line_with_the_remedy(tmp_path, capsys):
    text = plan(tmp_path, capsys, "backend=vllm", driver="550", capability="8.9")
    (line,) = [line for line in text.splitlines() if "NVIDIA driver 580" in line]
    assert "unavailable" in line
    assert line.endswith("update the driver, or set backend.env.cuda=vllm_cuda12 or backend.env.cuda=vllm_image")


def test_a_form_that_would_be_refused_too_is_not_advised(capsys):
    """vLLM for CUDA 12 wants a driver from 525 on, its image one from 535 on."""
    for driver, advised in (("550", "vllm_cuda12 or backend.env.cuda=vllm_image"), ("530", "vllm_cuda12"), ("470", "")):
        line = planned(capsys, f"driver={driver},capability=8.9")["vllm"]
        assert line.endswith(f"update the driver{', or set backend.env.cuda=' if advised else ''}{advised}"), line
    assert "backend.env.cuda=llamacpp_image" in planned(capsys, "driver=550,nvcc=13.0")["llamacpp"]


def test_the_plan_takes_the_build_that_fits_and_says_so(tmp_path, capsys):
    text = plan(tmp_path, capsys, "backend=transformers", driver="570", capability="8.9")
    assert "environment transformers_cuda12 instead of environment transformers: built for CUDA 13" in text
    assert "unavailable" not in text
    assert "cuda12" not in plan(tmp_path, capsys, "backend=transformers", driver="580", capability="8.9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backend=vllm", "model.dtype=bfloat16"], "which the engine rejects: set model.dtype=float16"),
        (["backend=vllm"], "have no bfloat16: the engine computes in float16"),  # random weights are stored in it
        (["backend=sglang", "model.dtype=bfloat16"], "have no bfloat16: the engine computes in float16"),
        (["backend=transformers", "model.dtype=bfloat16"], "the engine emulates it slowly"),
        (["backend=transformers_4bit", "model.dtype=float16"], "the engine emulates it slowly"),
        (["backend=vllm", "model.dtype=float16"], None),
        (["backend=ctranslate2", "backend.quantization=bfloat16"], "which the engine rejects"),
    ],
)
def test_bfloat16_on_a_gpu_without_it_is_said(arguments, words, tmp_path, capsys):
    text = plan(tmp_path, capsys, *arguments, driver="580", capability="7.5")
    assert words is None or words in text
    assert ("have no bfloat16" in text) == (words is not None)
    assert "have no bfloat16" not in plan(tmp_path, capsys, *arguments, driver="580", capability="8.0")
