"""The folder of the results of a run: the lines, the log, the test reports and the timelines.

At most 8 files return from a borrowed machine: the lines, the log, three test reports and three timelines.
"""

import shutil
import sys
from typing import Any

from gpu_runner import outcomes
from gpu_runner.facts import NotReady
from gpu_runner.junit import write_report
from gpu_runner.lines import Lines, ResultLines, read
from gpu_runner.settings import Settings

MOST_TRACES, MOST_BYTES = 3, 16 << 20
TRACE = "-timeline.json.gz"
OWN_FILES = ("results.jsonl", "gpu.log", "gpu-*.xml", f"*{TRACE}")


class ResultsFolder:
    """An open folder, with the results of an earlier run if the run resumes it.

    Raises
    ------
    ValueError
        If the earlier results are of another machine or commit, or new results would overwrite results.
    NotReady
        If the folder cannot be written.
    """

    def __init__(self, settings: Settings, machine: dict[str, Any]) -> None:
        self._settings = settings
        self.path = settings.lines.parent
        source = settings.resume and (settings.root / settings.resume).resolve()
        if source is not None:
            if not (source / settings.lines.name).exists():
                raise ValueError(f"RESUME={settings.resume} has no file {settings.lines.name}")
            outcomes.check_machine(read(source / settings.lines.name), machine)
        if source != self.path:
            self._refuse_overwrite()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if source is None:
                settings.lines.write_bytes(b"")
                settings.log.write_bytes(b"")
            elif source != self.path:
                for path in (path for pattern in OWN_FILES for path in sorted(source.glob(pattern))):
                    shutil.copyfile(path, self.path / path.name)
            self._lines = ResultLines(settings.lines)
            self._log = settings.log.open("ab", buffering=0)
        except OSError as error:
            raise NotReady(f"RESULTS={settings.results} cannot be written: {error}") from error

    def _refuse_overwrite(self) -> None:
        """Results of a GPU are worth more than the convenience to call a command twice."""
        results = self._settings.results
        lines = [] if self._settings.dry else read(self._settings.lines)
        if any(line["kind"] in outcomes.RESULTS for line in lines):
            raise ValueError(
                f"RESULTS={results} has results: RESUME={results} continues; or choose another folder"
            )

    def add(self, kind: str, **fields: Any) -> None:
        """Append a line to the results."""
        self._lines.add(kind, **fields)

    def lines(self) -> Lines:
        """Return all lines so far."""
        return read(self._settings.lines)

    def write(self, text: bytes) -> None:
        """Print a text, and add it to the log."""
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        self._log.write(text)

    def write_report(self, suite: str) -> None:
        """Write the test report of a suite, from the lines."""
        write_report(self.lines(), suite, self.path / f"gpu-{suite}.xml")

    def copy_traces(self) -> None:
        """Copy the timelines that the benches recorded."""
        for number, path in enumerate(sorted(self._settings.bench_files.glob("*" + TRACE))):
            if number < MOST_TRACES and path.stat().st_size <= MOST_BYTES:
                shutil.copyfile(path, self.path / path.name)
            else:
                self.write(f"the timeline {path} is not copied to the results\n".encode())
