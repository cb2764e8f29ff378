"""Builds `vitcache._native` with CMake and names the packages; everything else is in pyproject.toml."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# What is built, and the file that CMake makes of it. The second is no module: it is opened as a CUDA runtime
# is, and goes by a module's name so that it is installed beside the first.
LIBRARIES = {"vitcache._native": "{module}", "vitcache._stand_in": "libvitcache_stand_in_runtime.so"}

# `triton_kernels` is also the import name of a package that Triton's authors publish: never install either
# folder under its own name.
MAPPED_PACKAGES = {"vitcache.triton_kernels": "triton_kernels", "vitcache.bench": "bench"}


def name_packages() -> list[str]:
    """Every package by the name under which it is installed."""
    names = find_packages(include=["vitcache", "vitcache.*"])
    for package, folder in MAPPED_PACKAGES.items():
        names += [package, *(f"{package}.{inner}" for inner in find_packages(folder))]
    return names


def find_tool(name: str) -> str:
    """Path of a build tool: on PATH (pip's build environment comes first there) or beside this Python."""
    tool = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if tool is None:
        sys.exit(f"vitcache needs {name} to build: pip install {name}")
    return tool


class CMakeBuild(build_ext):
    """Runs CMake in a build folder that is kept, so that the second build compiles only what changed."""

    _built: Path | None = None

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        self._built = self._built or self.run_cmake()
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self._built / LIBRARIES[ext.name].format(module=library.name), library)

    def run_cmake(self) -> Path:
        """Build all libraries; returns the folder that they are in."""
        try:
            import pybind11
        except ImportError:
            sys.exit("vitcache needs pybind11 to build: pip install pybind11")
        # CMake keeps the compiler that a folder began with.
        compiler = re.sub(r"[^\w.+-]+", "-", os.environ.get("CXX", "c++"))
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{compiler}"
        cmake = find_tool("cmake")
        # Passed anew each time: pip's build environments, and the paths in them, come and go.
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DVITCACHE_BUILD_MODULE=ON",
            # Said each time, as the folder remembers: a wheel built after `make setup` must not have it.
            "-DVITCACHE_STAND_IN_FAULTS=OFF",
            f"-DVITCACHE_VERSION={self.distribution.get_version()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)
        return build


setup(
    license="Apache-2.0",
    packages=name_packages(),
    package_dir=MAPPED_PACKAGES,
    ext_modules=[Extension(name, sources=[]) for name in LIBRARIES],
    cmdclass={"build_ext": CMakeBuild},
)
