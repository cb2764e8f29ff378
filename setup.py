"""Builds the native libraries with CMake, lists the packages and states the requirements.

All other settings are in pyproject.toml.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent

# Extension name: the file that CMake builds for it. The stand-in for the CUDA runtime is not a Python module;
# the package opens it with dlopen. It is listed as an extension so that it is installed in the module's
# folder.
LIBRARIES = {"vitcache._native": "{module}", "vitcache._stand_in": "libvitcache_stand_in_runtime.so"}

# Installed name: folder. The folders are never installed under their own names, as Triton's authors publish a
# package that is imported as `triton_kernels`.
MAPPED_PACKAGES = {"vitcache.triton_kernels": "triton_kernels", "vitcache.bench": "bench"}

HOME = "https://github.com/vitcache/vitcache"

# An editable install puts this folder on sys.path. It contains only the package `vitcache`.
EDITABLE = Path("build", "editable")

SUPPORTED = runpy.run_path(str(ROOT / "vitcache" / "versions.py"))["SUPPORTED"]
OPTIONAL = runpy.run_path(str(ROOT / "vitcache" / "extras.py"))["EXTRAS"]


def at_least(package: str) -> str:
    """Return a requirement of the first supported version or a later one."""
    return f"{package}>={SUPPORTED[package][0]}"


def in_range(package: str) -> str:
    """Return a requirement of a supported version, for a package whose internals vitcache uses."""
    major, minor = SUPPORTED[package][1].split(".")
    return f"{at_least(package)},<{major}.{int(minor) + 1}"


# Triton is not listed: torch for CUDA brings its own, and the CPU needs none.
REQUIREMENTS = [at_least("torch"), "numpy", "blake3"]
EXTRAS = {
    "transformers": [in_range("transformers")],
    "metrics": list(OPTIONAL["metrics"]),
    "mooncake": ["mooncake-transfer-engine-non-cuda==0.3.13.post1", "xxhash"],
    "vllm": ["vllm==0.33.0"],
    "sglang": ["sglang==0.5.23"],
    "demo": [in_range("transformers"), *OPTIONAL["demo"]],
    "dev": [
        "vitcache[transformers,metrics,mooncake,demo]",
        *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "triton"),
        *("ruff", "mypy", "pyright[nodejs]", "pybind11-stubgen", "clang-format"),
    ],
}  # fmt: skip


def long_description() -> str:
    """Return README.md for PyPI: its links and pictures have whole addresses, those of this version's tag."""
    version = runpy.run_path(str(ROOT / "vitcache" / "_version.py"))["__version__"]
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"!\[([^]]*)\]\((?!http)", rf"![\1]({HOME}/raw/v{version}/", text)
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!http)", rf"[\1]({HOME}/blob/v{version}/", text)


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


class LinkedEditable(editable_wheel):
    """An editable install for type checkers, too: a .pth file that names a folder of links to the sources.

    The folder has the layout of an installed package. setuptools would write an import hook, as two packages
    are outside of vitcache/, and type checkers do not run import hooks. The native libraries are built into
    the folder.
    """

    def finalize_options(self) -> None:
        """Make the folder, and tell setuptools that the packages are in it."""
        package = ROOT / EDITABLE / "vitcache"
        package.mkdir(parents=True, exist_ok=True)
        for link in package.iterdir():
            if link.is_symlink():  # a native library is a file, and may be of another Python
                link.unlink()
        sources = [path for path in (ROOT / "vitcache").iterdir() if path.suffix not in (".so", ".pyc")]
        sources += [ROOT / folder for folder in MAPPED_PACKAGES.values()]
        for source in sources:
            if source.name != "__pycache__":
                (package / source.name).symlink_to(os.path.relpath(source, package))
        finder = ROOT / "requirements" / "editable_packages.py"
        (package.parent / finder.name).unlink(missing_ok=True)
        (package.parent / finder.name).symlink_to(os.path.relpath(finder, package.parent))
        self.distribution.package_dir = {"": str(EDITABLE)}
        super().finalize_options()

    def run(self) -> None:
        """Serve also a Python in the checkout's root, which finds the folder vitcache/ first.

        The libraries are linked there, and a second .pth file imports the finder of the two other packages.
        """
        super().run()
        for library in (ROOT / EDITABLE / "vitcache").glob("*.so"):
            link = ROOT / "vitcache" / library.name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(library, link.parent))
        [wheel] = Path(self.dist_dir).glob("*.whl")
        with zipfile.ZipFile(wheel, "a") as archive:  # pip adds the file to the list of installed files
            archive.writestr("__editable___vitcache_packages.pth", "import editable_packages\n")


setup(
    license="Apache-2.0",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    packages=name_packages(),
    package_dir=MAPPED_PACKAGES,
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    ext_modules=[Extension(name, sources=[]) for name in LIBRARIES],
    cmdclass={"build_ext": CMakeBuild, "editable_wheel": LinkedEditable},
)
