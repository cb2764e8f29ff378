"""A process of SGLang that only loads the plug-in imports nothing heavy for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

CODE = """
import json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
print(json.dumps(sorted(sys.modules)))
"""
# The packages of vitcache that the plug-in may use: their other modules are imported with the first image.
LIGHT = {"_version", "adapters", "device", "lazy"}


def modules_with(plug_ins: str) -> set[str]:
    """The modules of a process that has loaded these plug-ins."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "SGLANG_PLUGINS": plug_ins},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_plug_in_imports_no_module_of_sglang_or_torch_and_few_of_vitcache() -> None:
    added = modules_with("vitcache") - modules_with("none")
    assert "vitcache.adapters.sglang.plugin" in added
    assert {name for name in added if name.startswith(("sglang", "torch"))} == set()
    assert {name.split(".")[1] for name in added if name.startswith("vitcache.")} <= LIGHT
