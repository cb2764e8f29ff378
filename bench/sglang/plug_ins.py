"""Plug-ins of SGLang as pip installs them: a package in a folder on the path, with its entry points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GROUP = "sglang.srt.plugins"  # of entry points


def write_package(folder: Path, name: str, plug_ins: Mapping[str, str]) -> None:
    """Write the metadata of a package `name` into `folder`: the entry point of each plug-in."""
    package = folder / f"{name}-1.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    lines = [f"[{GROUP}]", *(f"{plug_in} = {target}" for plug_in, target in plug_ins.items())]
    (package / "entry_points.txt").write_text("\n".join(lines))
