"""The plug-ins of SGLang that tests write as a package, as pip installs it."""

from __future__ import annotations

PLUG_INS = "plug_ins"  # the folder of the tests' plug-ins, in the folder of the engines
PROBES = {
    "probe": "sglang_runner.probe:probe",
    "patient": "sglang_runner.probe:patient",
    "rename": "sglang_runner.probe:rename",
    "faults": "sglang_runner.faults:faults",
    "odd_images": "sglang_runner.odd_images:odd_images",
}
