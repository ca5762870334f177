"""Programs compiled from source: which options, what is kept, and whose words an error has. Tools are stand-ins here;
tests/engines builds llama.cpp for real."""

import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from backends.base import EnvironmentChoice, EnvironmentSpec, SourceBuild
from backends.launch.gpus import Gpu
from backends.prepare import environments, sources
from scripts import compile_cuda

SOURCE = SourceBuild(
    sdist="engine==1.0",
    folder="vendor/engine",
    targets=("engine-server", "engine-quantize"),
    options={"CMAKE_BUILD_TYPE": "Release", "TESTS": False},
    cpu_options={"avx2": {"AVX2": True}, "amx_int8": {"AMX": True}},
    keep=("convert.py",),
)

# Stand-ins for the environment's own tools. cmake: configure writes its options down, build makes the targets.
PIP = """#!/bin/sh
while [ "$1" != --dest ]; do shift; done
[ "$3" = engine==1.0 ] || { echo "ERROR: No matching distribution found for $3"; exit 1; }
mkdir -p "$2" && cp "{archive}" "$2"
"""
CMAKE = """#!/bin/sh
if [ "$1" = -S ]; then
    [ -f "$2/CMakeLists.txt" ] || { echo "CMake Error: no CMakeLists.txt"; exit 1; }
    mkdir -p "$4/bin"; echo "$@" > "{told}"
else
    [ -z "$FAIL" ] || { echo "[1/2] x.cpp"; echo "x.cpp:3: error: no such type"; echo "ninja: stopped"; exit 1; }
    build=$2; while [ "$1" != --target ]; do shift; done; shift
    for target in "$@"; do printf '#!/bin/sh\\n' > "$build/bin/$target"; chmod +x "$build/bin/$target"; done
fi
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """An environment's folder with an interpreter and cmake, and the archive that its pip finds."""
    tree = tmp_path / "engine-1.0" / "vendor" / "engine"
    tree.mkdir(parents=True)
    (tree / "CMakeLists.txt").write_text("project(engine)")
    (tree / "convert.py").write_text("print('convert')")
    archive = tmp_path / "engine-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "engine-1.0", "engine-1.0")
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    told = tmp_path / "told"
    for name, text in (("python", PIP), ("cmake", CMAKE)):
        path = folder / "bin" / name
        path.write_text(text.replace("{archive}", str(archive)).replace("{told}", str(told)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def build(source, folder, told=None, **environ) -> None:
    log = folder.with_suffix(".log")
    sources.build_program(source, folder, {**os.environ, **environ}, log, (told if told is not None else []).append)


def test_targets_are_in_the_environment_and_nothing_else_is_left(folder, tmp_path):
    build(SOURCE, folder)
    assert os.access(folder / "bin" / "engine-server", os.X_OK)
    assert os.access(folder / "bin" / "engine-quantize", os.X_OK)
    assert (folder / "share" / "convert.py").read_text() == "print('convert')"
    assert sorted(path.name for path in folder.iterdir()) == ["bin", "share"]
    arguments = (tmp_path / "told").read_text().split()
    assert "-DCMAKE_BUILD_TYPE=Release" in arguments
    assert "-DTESTS=OFF" in arguments


def test_without_targets_nothing_is_compiled(folder, tmp_path):
    build(SOURCE.model_copy(update={"targets": ()}), folder)
    assert (folder / "share" / "convert.py").exists()
    assert not (tmp_path / "told").exists()


def test_a_source_that_is_not_there_is_told_in_pips_words(folder):
    with pytest.raises(sources.BuildFailed, match=r"No matching distribution found for engine==2\.0; log: "):
        build(SOURCE.model_copy(update={"sdist": "engine==2.0"}), folder)


def test_a_build_that_fails_is_told_in_the_compilers_words(folder):
    with pytest.raises(sources.BuildFailed, match=r"x\.cpp:3: error: no such type ninja: stopped; log: "):
        build(SOURCE, folder, FAIL="1")
    assert "ninja: stopped" in folder.with_suffix(".log").read_text()


def test_options_follow_the_cpu_and_so_does_the_key():
    assert sources.options(SOURCE, frozenset({"avx2"})) == {**SOURCE.options, "AVX2": True}
    assert sources.options(SOURCE, frozenset()) == SOURCE.options
    assert sources.machine(SOURCE) == sources.machine(SOURCE)


def test_unlike_nodes_with_one_cache_do_not_share_a_program(monkeypatch):
    keys = set()
    for features in ({"avx2"}, {"avx2", "fma"}, {"sse2"}):
        monkeypatch.setattr(sources, "cpu_features", lambda features=features: frozenset(features))
        keys.add(sources.machine(SOURCE))
    assert len(keys) == 2  # fma changes no option


def test_features_are_read_from_the_kernel(monkeypatch, tmp_path):
    text = "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu sse4_2 avx2\n\nprocessor\t: 1\nflags\t\t: fpu sse4_2 avx2\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(sources, "CPU_INFORMATION", tmp_path / "cpuinfo")
    assert sources.cpu_features() == {"fpu", "sse4_2", "avx2"}


def test_llamacpp_is_built_for_this_cpu_but_never_for_amx():
    """With gcc 12 its AMX kernels die of SIGILL on quantised models; GGML_NATIVE would switch them on."""
    source = environments.resolve(EnvironmentChoice(cpu="llamacpp"), "cpu").source
    full = frozenset({"sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx512bw", "amx_tile", "amx_int8", "amx_bf16"})
    chosen = sources.options(source, full)
    assert chosen["GGML_NATIVE"] is False
    assert chosen["GGML_AVX512"] is True
    assert not any("AMX" in name for name in chosen)
    old = sources.options(source, frozenset({"sse4_2", "avx"}))
    assert (old["GGML_AVX"], old["GGML_AVX2"], old["GGML_FMA"]) == (True, False, False)
    assert "GGML_NATIVE" not in sources.options(source, frozenset({"asimd"}))  # on ARM it does as it likes


def test_the_source_is_part_of_an_environments_key():
    spec = EnvironmentSpec(name="x", requirements=("a==1",))
    built = spec.model_copy(update={"source": SOURCE})
    assert environments.fingerprint(spec) != environments.fingerprint(built)


def test_kernels_are_for_the_nodes_gpus_and_so_is_the_key(monkeypatch, tmp_path):
    """A cache shared by nodes with L4s and A100s: "native" would be one word for both."""
    source = environments.resolve(EnvironmentChoice(cuda="llamacpp_cuda"), "cuda").source
    extension = EnvironmentSpec(name="x", requirements=("a",), cuda=13, imports=("a",))
    monkeypatch.delenv("CUDAARCHS", raising=False)
    keys, folders = set(), set()
    for capabilities, expected in ((["8.9"], "89"), (["8.0"], "80"), (["9.0", "8.9"], "89;90")):
        present = [Gpu("GPU-a", number, "X", capability) for number, capability in enumerate(capabilities)]
        monkeypatch.setattr(sources.gpus, "visible", lambda present=present: tuple(present))
        assert sources.options(source, frozenset())["CMAKE_CUDA_ARCHITECTURES"] == expected
        keys.add(sources.machine(source))
        folders.add(environments._folder(extension, tmp_path))
    assert len(keys) == len(folders) == 3
    monkeypatch.setenv("CUDAARCHS", "75")
    assert sources.options(source, frozenset())["CMAKE_CUDA_ARCHITECTURES"] == "75"
    monkeypatch.delenv("CUDAARCHS")
    monkeypatch.setattr(sources.gpus, "visible", lambda: ())
    with pytest.raises(environments.EnvironmentFailed, match="no GPU to compile for; set CUDAARCHS"):
        environments._folder(extension, tmp_path)


def test_a_build_that_was_stopped_goes_on(folder, tmp_path):
    with pytest.raises(sources.BuildFailed):
        build(SOURCE, folder, FAIL="1")
    (tmp_path / "engine-1.0.tar.gz").unlink()  # nothing is fetched again
    built = folder.with_suffix(".source") / "build" / "bin"
    (built / "object").write_text("")
    build(SOURCE, folder)
    assert os.access(folder / "bin" / "engine-server", os.X_OK)
    assert not folder.with_suffix(".source").exists()


def test_a_compiler_of_distributions_is_completed(tmp_path):
    toolkit = tmp_path / "lib" / "python3.12" / "site-packages" / "nvidia" / "cu13"
    for name in ("bin/nvcc", "lib/libcudart.so.13", "lib/libcublas.so.13"):
        (toolkit / name).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / name).write_text("")
    for _ in range(2):
        sources.complete_toolkit(tmp_path)
        assert (toolkit / "lib64" / "libcudart.so").resolve() == toolkit / "lib" / "libcudart.so.13"


def test_the_kinds_of_code_of_a_program_are_read_of_its_fat_binaries(tmp_path):
    def entry(kind: int, version: int) -> bytes:
        header = struct.pack("<HHIQ12xI", kind, 0, 32, 8, version)
        return header + bytes(8)

    entries = entry(2, 89) + entry(1, 90)
    fat = compile_cuda.FAT_BINARY + struct.pack("<HHQ", 1, 16, len(entries)) + entries
    (tmp_path / "program").write_bytes(b"ELF" + fat + bytes(64))
    assert compile_cuda.architectures(tmp_path / "program") == ["compute_90", "sm_89"]
