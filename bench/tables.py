"""``python -m vitcache.bench.tables FILE...``: fill the tables of a Markdown file from the result files.

A table is the text between the lines ``<!-- table: BENCH METRIC -->`` and ``<!-- end -->``. It has a row per
case and a column per contender of the newest result file of the bench with this metric. A cell contains the
value and, in parentheses, its ratio. Without such a result the text says so.

Three more tables have one word between ``<!-- table:`` and ``-->``: ``memory`` and ``worth`` are made of
``bench/results/memory.json``, which ``vitcache memory --json > bench/results/memory.json`` writes, and
``demo`` of ``docs/images/chat.json``, which ``vitcache demo --repeats 9 --plot docs/images/chat.png --json
docs/images/chat.json`` writes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from vitcache.bench import worth_table
from vitcache.bench.harness.record import RESULTS, ROOT, read_rows
from vitcache.demo.chat_table import markdown
from vitcache.terminal.result_file import replace_file

TABLE = re.compile(r"(?P<head><!-- table: (?P<words>[\w ]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
MEMORY_FILE = "memory.json"
MEMORY_IMAGES = "1280x720", "1920x1080"
DEMO_FILE = ROOT.parent / "docs" / "images" / "chat.json"


def fill(text: str, results: Path) -> str:
    """Return the text of a Markdown file with new tables from the folder `results`."""

    def table(match: re.Match[str]) -> str:
        return "\n".join([match["head"], *lines_of(match["words"], results), ""])

    return TABLE.sub(table, text)


def lines_of(words: str, results: Path) -> list[str]:
    """Return the lines of the table that the words of its first line name.

    Raises
    ------
    ValueError
        If `words` are not ``memory``, ``worth``, ``demo`` or a bench and a metric.
    """
    if words == "memory":
        return render_memory(results / MEMORY_FILE)
    if words == "worth":
        return worth_table.lines(results / MEMORY_FILE)
    if words == "demo":
        return markdown(json.loads(DEMO_FILE.read_text()))
    if len(words.split()) != 2:
        raise ValueError(f"expected a table 'memory', 'worth', 'demo' or 'BENCH METRIC', got {words!r}")
    bench, metric = words.split()
    rows = newest(bench, metric, results)
    return render(rows) if rows else [f"No result `{metric}` of the bench `{bench}` exists yet."]


def newest(bench: str, metric: str, results: Path) -> list[dict[str, Any]]:
    """Return the results with this metric of the file with the latest of them; empty without a file."""
    files: list[list[dict[str, Any]]] = [
        [row for row in read_rows(path) if row["metric"] == metric]
        for path in results.glob(f"{bench}-*.json")
    ]
    return max((rows for rows in files if rows), key=lambda rows: str(rows[-1]["utc"]), default=[])


def render(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table, and a line that names the machine and the commit."""
    cells = {(row["case"], row["contender"]): cell(row) for row in rows}
    cases, contenders = (list(dict.fromkeys(row[name] for row in rows)) for name in ("case", "contender"))
    lines = [["", *contenders], ["---"] * (len(contenders) + 1)]
    lines += [[case, *(cells.get((case, contender), "") for contender in contenders)] for case in cases]
    first = rows[0]
    ratios = {row["ratio_to"] for row in rows if row["ratio"] is not None}
    units = ", ".join(dict.fromkeys(row["unit"] for row in rows))
    unit = f"{first['metric']}, {units}" + (f" (ratio to {', '.join(sorted(ratios))})" if ratios else "")
    machine = f"{first['device']}, torch {first['torch']}, commit {first['commit']}, {first['utc'][:10]}"
    return [*("| " + " | ".join(line) + " |" for line in lines), "", f"{unit}; {machine}."]


def render_memory(path: Path) -> list[str]:
    """Return the lines of the table of models: rows and MiB of an image, and the images that 1 GiB holds."""
    if not path.exists():
        return [f"No result file {path.name} exists yet."]
    report = json.loads(path.read_text())
    heads = ["model"]
    for image in MEMORY_IMAGES:
        heads += [f"{image}: rows", "MiB", "images per GiB"]
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1)]
    for model in report["models"]:
        images = {image["image"]: image for image in model["images"]}
        cells = [f"[{model['model']}](https://huggingface.co/{model['checkpoint']})"]
        for name in MEMORY_IMAGES:
            image = images[name]
            per_gib = (1 << 30) // (image["bytes"] // image["pages"]) // image["pages"]
            cells += [f"{image['rows']:,}", f"{image['bytes'] / 2**20:.1f}", f"{per_gib:,}"]
        lines.append(cells)
    [dtype] = {model["dtype"] for model in report["models"]}
    note = (
        f"Rows as {dtype}, in pages of {report['page_rows']} rows. Counted by `vitcache memory` with "
        f"the image processors of transformers {report['transformers']} and the settings of the checkpoints."
    )
    return [*("| " + " | ".join(line) + " |" for line in lines), "", note]


def cell(row: dict[str, Any]) -> str:
    """Return the value, and the ratio unless it is the reference's own; a missed target is in bold."""
    value = f"{row['value']:,.4g}" if row["value"] < 1e4 else f"{row['value']:,.0f}"
    ratio = "" if row["ratio"] is None or row["contender"] == row["ratio_to"] else f" ({row['ratio']:.2f})"
    return f"**{value}{ratio}**" if row["meets_target"] is False else value + ratio


def main() -> int:
    """Fill the tables of the files on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    for path in args.files:
        try:
            replace_file(path, fill(path.read_text(), args.results))
        except (OSError, ValueError) as error:
            print(f"tables: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
