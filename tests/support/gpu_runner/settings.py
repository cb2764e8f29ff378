"""The settings of a run: the variables of `make gpu`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_runner.budget import parse_budget
from gpu_runner.lines import ROOT

VENV_PYTHON = ".venv/bin/python"


@dataclass(frozen=True)
class Settings:
    """The variables of `make gpu`, with their defaults.

    `python` is the interpreter, `results` the folder of the results, and `resume` the folder of the results
    that the run continues, or None.
    """

    python: str
    results: Path
    only: tuple[str, ...] = ()
    dry: bool = False
    budget_s: float | None = None
    resume: Path | None = None
    root: Path = ROOT

    @classmethod
    def read(cls, env: Mapping[str, str], python: str) -> "Settings":
        """Read the variables.

        Raises
        ------
        ValueError
            If BUDGET is not a number of seconds above 0.
        """
        dry = env.get("DRY", "0") not in ("", "0")
        resume = Path(env["RESUME"]) if env.get("RESUME") else None
        results = Path(env.get("RESULTS") or resume or ("results/dry" if dry else "results"))
        budget_s = parse_budget(env.get("BUDGET", ""))
        return cls(python, results, tuple(env.get("ONLY", "").split()), dry, budget_s, resume)

    @property
    def lines(self) -> Path:
        """The file of all results."""
        return (self.root / self.results / "results.jsonl").resolve()

    @property
    def log(self) -> Path:
        """The output of all parts."""
        return self.root / self.results / "gpu.log"

    @property
    def bench_files(self) -> Path:
        """The folder where the benches write a file each. Only few files may return from a borrowed GPU."""
        return self.root / "build/gpu-benches"

    @property
    def needs_build(self) -> bool:
        """Whether the package is not installed in the interpreter; `make setup` installs it in .venv."""
        return self.python != VENV_PYTHON

    def environment(self) -> dict[str, str]:
        """Return the environment of the interpreter that runs the parts."""
        env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        paths = [str(self.root / "build/gpu")] if self.needs_build else []
        paths += [str(self.root / "tests/support"), *filter(None, [env.get("VITCACHE_PYTHONPATH")])]
        env["PYTHONPATH"] = os.pathsep.join(paths)
        if self.dry:
            # A dry run does not use a GPU even if the machine has one.
            env.update(VITCACHE_GPU_DRY="1", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
        return env

    def command_to_resume(self) -> str:
        """Return the command that continues where this run ended."""
        names = {"RESUME": str(self.results), "ONLY": " ".join(self.only), "DRY": "1" if self.dry else ""}
        names["BUDGET"] = "" if self.budget_s is None else f"{self.budget_s:g}"
        names["PYTHON"] = os.environ.get("PYTHON", "")
        names["COMMIT"] = os.environ.get("COMMIT", "")
        quoted = {name: f'"{value}"' if " " in value else value for name, value in names.items() if value}
        return "make gpu " + " ".join(f"{name}={value}" for name, value in quoted.items())
