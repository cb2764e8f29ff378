"""The package of the tests' plug-ins, as pip would install it: a folder on the path with its entry points."""

from __future__ import annotations

from pathlib import Path

PLUG_INS = "plug_ins"  # in the folder of the engines
FILES = {
    "METADATA": "Metadata-Version: 2.1\nName: sglang-runner\nVersion: 1\n",
    "entry_points.txt": (
        "[sglang.srt.plugins]\nprobe = sglang_runner.probe:probe\nrename = sglang_runner.probe:rename\n"
    ),
}


def write_plug_ins(folder: Path) -> None:
    """Write the package into the folder of the engines."""
    package = folder / PLUG_INS / "sglang_runner-1.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (package / name).write_text(text)
