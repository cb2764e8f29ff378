"""``python -m vitcache.bench.split FILE``: write the results of `make gpu` as a file per bench and device.

The files are those that the bench itself writes, so `vitcache.bench.plot` and `vitcache.bench.tables` read
them. A bench is complete if each of its cases is finished; with ``--partial``, the results of incomplete
benches are written, too. Timelines beside FILE are copied with the results of their bench.
Example: ``python -m vitcache.bench.split results/results.jsonl --out bench/results``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitcache.bench.harness.record import FIELDS, RESULTS, path_of, write_rows
from vitcache.bench.harness.result_lines import Case, cases_of, read
from vitcache.bench.harness.timeline import SUFFIX
from vitcache.terminal.result_file import replace_file


def split(file: Path, directory: Path, *, partial: bool = False) -> Iterator[tuple[Path | None, str]]:
    """Write the result files; yield each path and a text. The path is None if a bench is left out.

    Raises
    ------
    ValueError
        If a line of `file` is not one of `vitcache.bench.harness.result_lines`, or a row lacks a field.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for bench, cases in cases_of(read(file)).items():
        reason = missing(cases)
        rows = [_with_fields(row, file) for case in cases for row in case.rows]
        if not rows:
            yield None, f"{bench}: no results, {reason or 'its cases have none'}"
            continue
        if reason and not partial:
            yield None, f"{bench}: {reason}; --partial writes its {len(rows)} results"
            continue
        for device, chosen in by_device(rows).items():
            path = path_of(bench, device, directory)
            write_rows(chosen, path)
            yield path, f"{len(chosen)} results" + (f", {reason}" if reason else "")
            trace = file.parent / (path.stem + SUFFIX)
            if trace.exists():
                replace_file(directory / trace.name, trace.read_bytes())
                yield directory / trace.name, "timeline"


def _with_fields(row: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the fields of a result file."""
    lacks = [name for name in FIELDS if name not in row]
    if lacks or not isinstance(row["device"], str):
        raise ValueError(f"{file}: a row of the bench {row['bench']} has no {', '.join(lacks) or 'device'}")
    return {name: row[name] for name in FIELDS}


def missing(cases: list[Case]) -> str:
    """Say which cases are not finished; empty if the bench is complete."""
    count = cases[-1].count
    finished = [case for case in cases if case.state == "finished"]
    if len(finished) == count:
        return ""
    words = {"begun": "was cut", "failed": "failed"}
    named = [f"{case.name} {words[case.state]}" for case in cases if case.state in words]
    not_begun = count - len(cases)
    named += [f"{not_begun} not started"] if not_begun else []
    return f"{len(finished)} of {count} cases are finished ({', '.join(named)})"


def by_device(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows by the name of their device, each in the order of the rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["device"], []).append(row)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Split the file on the command line, and print a line per result file and per bench that is left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="results.jsonl of make gpu")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of the JSON files")
    parser.add_argument("--partial", action="store_true", help="write the results of incomplete benches, too")
    args = parser.parse_args(arguments)
    if not args.file.exists():
        print(f"split: {args.file} does not exist", file=sys.stderr)
        return 1
    try:
        for path, text in split(args.file, args.out, partial=args.partial):
            print(f"left out {text}" if path is None else f"wrote {path}: {text}")
    except (OSError, ValueError) as error:
        print(f"split: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
