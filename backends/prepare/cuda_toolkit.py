"""The CUDA compiler that an environment brings as NVIDIA's distributions, made what compilers and CMake expect.

The distributions hold libraries by their full names only (libcudart.so.13), in `lib`: linkers look for libcudart.so,
and torch in `lib64`.
"""

from pathlib import Path


def complete(folder: Path) -> None:
    """Add the links that are missing to the toolkits of an environment that has nvcc."""
    for compiler in folder.glob("lib/python*/site-packages/nvidia/*/bin/nvcc"):
        libraries = compiler.parents[1] / "lib"
        for library in libraries.glob("lib*.so.*"):
            link = library.with_name(library.name.partition(".so.")[0] + ".so")
            if not link.exists():
                link.symlink_to(library.name)
        if not libraries.with_name("lib64").exists():
            libraries.with_name("lib64").symlink_to(libraries.name)
