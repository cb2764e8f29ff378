"""The versions of other packages that vitcache supports. No other file of the package states them.

setup.py makes the requirements of the package from this file. `vitcache info` compares the installed
versions with it, and `attach` warns once about versions outside of their ranges. This file
imports only the standard library, as setup.py runs it before the package exists.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

# The first and the last supported version, by package.
SUPPORTED = {"torch": ("2.9", "2.14"), "triton": ("3.5", "3.9"), "transformers": ("5.17", "5.23")}
# The versions that the tests are run with: `make test` has torch 2.13 and the newest Triton and transformers,
# `make test-oldest` the older Tritons and transformers, `make test-torch` both ends of torch.
TESTED = {
    "torch": ("2.9", "2.13", "2.14"),
    "triton": ("3.5", "3.6", "3.9"),
    "transformers": ("5.17", "5.23"),
}


def installed_version(package: str) -> str | None:
    """Return the installed version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def support_note(package: str, installed: str) -> str:
    """Return a note for a version that is not supported, and an empty string for a supported one."""
    first, last = SUPPORTED[package]
    if major_minor(first) <= major_minor(installed) <= major_minor(last):
        return ""
    return f" (vitcache supports {first} to {last}, tested with {versions_of_tests(package)})"


def versions_of_tests(package: str) -> str:
    """Return the versions of a package that the tests are run with, in words: 2.9, 2.13 and 2.14."""
    *others, last = TESTED[package]
    return f"{', '.join(others)} and {last}" if others else last


def major_minor(text: str) -> tuple[int, ...]:
    """Return (major, minor) of a version such as 2.13.0+cpu or 2.10rc1; () if `text` is not a version."""
    match = re.match(r"(\d+)(?:\.(\d+))?", text)
    return tuple(int(number or 0) for number in match.groups()) if match else ()
