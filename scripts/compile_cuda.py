"""Compile what CUDA engines compile at installation, without a GPU: `python scripts/compile_cuda.py [NAME...]`.

It installs each environment as a node of that compute capability would, so it checks locks, compilers, linking and
sources; only the kernels are not run. What it compiled is kept: the same command goes on where it was stopped.
docs/measurements/compile_cuda.md holds its output.
"""

import argparse
import os
import struct
import sys
import time
from ctypes.util import find_library
from pathlib import Path

from backends.base import EnvironmentChoice
from backends.launch import task
from backends.prepare import environments, locks
from sweep.base.config import cache_directory

COMPILED = ("llamacpp_cuda", "exllamav3")
FAT_BINARY = b"\x50\xed\x55\xba"  # begins each of them
ENTRY_BYTES = 32  # of an entry's header, as far as it is read


def compiled_files(folder: Path) -> list[Path]:
    """The programs and extensions that were compiled for the GPU."""
    programs = [path for path in (folder / "bin").glob("llama-*") if path.is_file()]
    return [*programs, *(folder / task.EXTENSIONS).glob("**/*.so")]


def architectures(file: Path) -> list[str]:
    """The kinds of code in a program, library or object, e.g. "sm_89", from the headers of its CUDA fat binaries."""
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


def build(name: str, cache: Path) -> None:
    """Install one environment and print what was compiled."""
    begin = time.monotonic()
    spec = locks.locked(environments.resolve(EnvironmentChoice(cuda=name), "cuda"), cache, print)
    if spec.source and find_library("cuda") is None:
        print(f"{name}: no driver to link to, so built with GGML_CUDA_NO_VMM, which calls none of its functions")
        options = spec.source.options | {"GGML_CUDA_NO_VMM": True}
        spec = spec.model_copy(update={"source": spec.source.model_copy(update={"options": options})})
    environment = environments.prepare(spec, cache, print)
    folder = Path(environment.python).parents[1]
    print(f"{name}: installed in {time.monotonic() - begin:.0f} s; {', '.join(spec.requirements)}")
    for file in compiled_files(folder):
        print(f"{name}: {file.name}: {file.stat().st_size / 1e6:.0f} MB, code for {', '.join(architectures(file))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", default=COMPILED)
    parser.add_argument("--capability", default="8.9", help="compute capability to compile for (default: 8.9)")
    parser.add_argument("--jobs", default="2", help="compilers at once (default: 2)")
    options = parser.parse_args()
    os.environ.update(
        CUDAARCHS=options.capability.replace(".", ""), TORCH_CUDA_ARCH_LIST=options.capability, MAX_JOBS=options.jobs
    )
    failures = 0
    for name in options.names:
        try:
            build(name, cache_directory(None))
        except environments.EnvironmentFailed as error:
            failures += 1
            print(f"{name}: {error}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
