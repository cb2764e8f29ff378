"""The optional packages by their names at PyPI, and the extras of vitcache that install them.

setup.py makes the extras from this file. It runs the file before the package exists, so the file imports
nothing of vitcache.
"""

from __future__ import annotations

# Packages by extra. A package that several extras install is listed with the first one.
EXTRAS = {
    "transformers": ("transformers",),
    "demo": ("rich", "matplotlib", "scikit-image", "scikit-learn", "pillow"),
    "metrics": ("prometheus-client",),
    # Not the build for CUDA, which has the same module: it needs the libraries of CUDA.
    "mooncake": ("mooncake-transfer-engine-non-cuda", "xxhash"),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
}
# Packages that have the same modules as one of an extra: the build for CUDA.
EQUAL_PACKAGES = {"mooncake-transfer-engine-non-cuda": "mooncake-transfer-engine"}
# Modules whose package has another name at PyPI.
_PACKAGES = {
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "prometheus_client": "prometheus-client",
    "mooncake": "mooncake-transfer-engine-non-cuda",
}


def package_of(module: str) -> str:
    """Return the name at PyPI of the package that contains a module.

    Examples
    --------
    >>> package_of("skimage.data")
    'scikit-image'
    """
    top = module.partition(".")[0]
    return _PACKAGES.get(top, top)


def install_command(package: str) -> str:
    """Return the command that installs a package: with the extra that has it, else the package itself.

    Examples
    --------
    >>> install_command("scikit-image"), install_command("timm")
    ("pip install 'vitcache[demo]'", 'pip install timm')
    """
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    return f"pip install {package}" if extra is None else f"pip install 'vitcache[{extra}]'"


def need_of(module: str) -> str:
    """Return the words for a module that cannot be imported: its package, and the command that installs it.

    Examples
    --------
    >>> need_of("sklearn.datasets")
    "needs scikit-learn: pip install 'vitcache[demo]'"
    """
    package = package_of(module)
    return f"needs {package}: {install_command(package)}"
