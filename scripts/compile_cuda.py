"""Compile the code that CUDA engines compile at installation or first use: `python scripts/compile_cuda.py [NAME...]`.

It needs no GPU. It installs each environment as a node with that compute capability would, so it checks locks,
compilers, linking and sources. Only the kernels do not run. In vllm and sglang FlashInfer compiles its sampling kernels
and one decode kernel with its own JIT. Compiled code is kept, so the same command continues where it was stopped.
docs/measurements/compile_cuda.md has the output.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import time
from ctypes.util import find_library
from pathlib import Path

from backends.base import EnvironmentChoice
from backends.launch import task
from backends.prepare import environments, locks
from sweep.base.config import cache_directory

# The capabilities for which each environment is compiled, at installation or at an engine's first use.
COMPILED = {"llamacpp_cuda": ("8.9",), "exllamav3": ("8.9",)}
AT_FIRST_USE = dict.fromkeys(("vllm", "sglang"), ("7.5", "8.9", "9.0"))
# Kernels for an engine's sampler, and for decoding with a 7B model in float16.
KERNELS = """
import json, time, torch
from flashinfer.jit import attention, sampling
half = torch.float16
decode = attention.gen_batch_decode_module(half, half, half, torch.int32, 128, 128, 0, False, False)
for module in (sampling.gen_sampling_module(), decode):
    begin, error = time.monotonic(), None
    try:
        module.build(verbose=False)
    except RuntimeError as failure:
        error = str(failure)
    file = str(module.jit_library_path)
    print(json.dumps({"file": file, "error": error, "seconds": time.monotonic() - begin}), flush=True)
"""
TOOLKIT = ("flashinfer-python", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
FAT_BINARY = b"\x50\xed\x55\xba"  # magic number at the beginning of each fat binary
ENTRY_BYTES = 32  # bytes that are read of an entry's header


def compiled_files(folder: Path) -> list[Path]:
    """Return the programs and extensions that were compiled for the GPU."""
    programs = [path for path in (folder / "bin").glob("llama-*") if path.is_file()]
    return [*programs, *(folder / task.EXTENSIONS).glob("**/*.so")]


def architectures(file: Path) -> list[str]:
    """Return the kinds of code in a program, library or object, e.g. "sm_89", from its CUDA fat binaries' headers."""
    data, kinds = file.read_bytes(), set()
    at = data.find(FAT_BINARY)
    while at >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, at)
        entry, end = at + header, min(at + header + size, len(data) - ENTRY_BYTES)
        while entry < end:
            kind, _, length, code = struct.unpack_from("<HHIQ", data, entry)
            (version,) = struct.unpack_from("<I", data, entry + 28)
            kinds.add(f"{'compute' if kind == 1 else 'sm'}_{version}")  # 1: PTX, 2: machine code
            if length + code == 0:
                break
            entry += length + code
        at = data.find(FAT_BINARY, at + 4)
    return sorted(kinds)


def install(name: str, cache: Path) -> environments.Environment:
    """Install one environment and print what was compiled."""
    begin = time.monotonic()
    spec = locks.locked(environments.resolve(EnvironmentChoice(cuda=name), "cuda"), cache, print)
    if spec.source and find_library("cuda") is None:
        print(f"{name}: no driver to link to, so built with GGML_CUDA_NO_VMM, which calls none of its functions")
        options = spec.source.options | {"GGML_CUDA_NO_VMM": True}
        spec = spec.model_copy(update={"source": spec.source.model_copy(update={"options": options})})
    environment = environments.prepare(spec, cache, print)
    print(f"{name}: installed in {time.monotonic() - begin:.0f} s; {', '.join(spec.requirements)}")
    for file in compiled_files(Path(environment.python).parents[1]):
        print(f"{name}: {file.name}: {file.stat().st_size / 1e6:.0f} MB, code for {', '.join(architectures(file))}")
    return environment


def driver_stand_in(folder: Path) -> dict[str, str]:
    """Make an empty libcuda if this machine has no libcuda to link to. Return the variable by which linkers find it."""
    if find_library("cuda"):
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull, "-o", str(folder / "libcuda.so")]
    subprocess.run(command, check=True)
    return {"LIBRARY_PATH": str(folder)}


def compile_kernels(name: str, environment: environments.Environment, capability: str) -> int:
    """Let FlashInfer compile the modules of first use for one capability. Return how many modules failed."""
    folder = Path(environment.python).parents[1].with_suffix(".kernels")
    stand_in = driver_stand_in(folder / "driver")
    environ = task.clean_environment(
        **task.activated(environment.python),
        **stand_in,
        FLASHINFER_CUDA_ARCH_LIST=capability,
        FLASHINFER_WORKSPACE_BASE=str(folder),
    )
    toolkit = ", ".join(f"{package} {environment.versions[package]}" for package in TOOLKIT)
    linked = "an empty libcuda, for there is no driver" if stand_in else "the driver's libcuda"
    print(f"{name}: capability {capability}: {toolkit}; linked to {linked}")
    command, failures = [environment.python, "-P", "-c", KERNELS], 0
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            module = json.loads(line)
            file = Path(module["file"])
            if error := module["error"]:
                failures += 1
                lines = error.splitlines()
                print(f"{name}: {file.stem}: {next((line for line in lines if 'error' in line), lines[-1])}")
                continue
            size, code = file.stat().st_size / 1e6, ", ".join(architectures(file))
            print(f"{name}: {file.name}: {size:.1f} MB, code for {code}, in {module['seconds']:.0f} s", flush=True)
    return failures + bool(process.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", default=[*COMPILED, *AT_FIRST_USE])
    parser.add_argument(
        "--capability", nargs="+", help="compute capabilities (default: 8.9; vllm, sglang: 7.5 8.9 9.0)"
    )
    parser.add_argument("--jobs", default="2", help="compilers at once (default: 2)")
    options = parser.parse_args()
    os.environ["MAX_JOBS"] = options.jobs
    os.environ.pop("CUDA_HOME", None)  # only the environments' own compilers should be used
    failures = 0
    targets = {**COMPILED, **AT_FIRST_USE}
    pairs = [(name, each) for name in options.names for each in options.capability or targets.get(name, ("8.9",))]
    for name, capability in pairs:
        os.environ.update(CUDAARCHS=capability.replace(".", ""), TORCH_CUDA_ARCH_LIST=capability)
        try:
            environment = install(name, cache_directory(None))
        except environments.EnvironmentFailed as error:
            failures += 1
            print(f"{name}: {error}")
        else:
            failures += compile_kernels(name, environment, capability) if name in AT_FIRST_USE else 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
