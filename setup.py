"""Builds the native libraries with CMake and lists the packages; all other settings are in pyproject.toml."""

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

# Extension name: the file that CMake builds for it. The stand-in for the CUDA runtime is not a Python module;
# the package opens it with dlopen. It is listed as an extension so that it is installed in the module's
# folder.
LIBRARIES = {"vitcache._native": "{module}", "vitcache._stand_in": "libvitcache_stand_in_runtime.so"}

# Installed name: folder. The folders are never installed under their own names, as Triton's authors publish a
# package that is imported as `triton_kernels`.
MAPPED_PACKAGES = {"vitcache.triton_kernels": "triton_kernels", "vitcache.bench": "bench"}


def name_packages() -> list[str]:
    """Return the installed names of all packages."""
    names = find_packages(include=["vitcache", "vitcache.*"])
    for package, folder in MAPPED_PACKAGES.items():
        names += [package, *(f"{package}.{inner}" for inner in find_packages(folder))]
    return names


def find_tool(name: str) -> str:
    """Return the path of a build tool: on PATH, pip's build environment first, or in Python's scripts."""
    tool = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if tool is None:
        sys.exit(f"vitcache needs {name} to build: pip install {name}")
    return tool


class CMakeBuild(build_ext):
    """Runs CMake in a build folder that is not deleted: the next build compiles only the changed files."""

    _built: Path | None = None

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        self._built = self._built or self.run_cmake()
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self._built / LIBRARIES[ext.name].format(module=library.name), library)

    def run_cmake(self) -> Path:
        """Build all libraries; return the build folder that contains them."""
        try:
            import pybind11
        except ImportError:
            sys.exit("vitcache needs pybind11 to build: pip install pybind11")
        # One folder per compiler: CMake cannot change the compiler of an existing folder.
        compiler = re.sub(r"[^\w.+-]+", "-", os.environ.get("CXX", "c++"))
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{compiler}"
        cmake = find_tool("cmake")
        # All paths are passed in every build, as the paths in pip's build environments change.
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DVITCACHE_BUILD_MODULE=ON",
            # CMake remembers the last value; a wheel built after `make setup` must not contain the fault
            # controls.
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
