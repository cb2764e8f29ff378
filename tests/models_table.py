"""Writes docs/models.md, the table of model types, from the results of the tests of model families.

    models_table.py RESULTS...           write docs/models.json and docs/models.md
    models_table.py --check RESULTS...   compare them with these results; the exit code is 1 if they differ

RESULTS are files that `make test` and `make test-oldest` write: one JSON object per line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STORED, TABLE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"
MODALITIES = ("image", "video", "audio")

HEAD = """# Models that `attach` serves

Each row is a test result. *exact*: with four prompts (a first turn, a second turn, another order with a new
item, and duplicates), the logits and the tokens of `generate` equal bit for bit those of the stock model that
encodes each item with a call of its own, and each item is encoded once; each item alone changes the logits by
at least 1 % of the largest one. *name*: the split is made for this model type. *signature*: it follows from
the names of the arguments, and the first call with several items is checked. *stock*: the stock method
encodes this modality, and nothing is cached. An empty cell: the model lacks this modality. *placed*: the
modalities whose rows one launch writes from the cache into the output of the token embedding, in each forward
of these tests; the rows of the other modalities are copied to a tensor that the stock forward reads. So are
the rows in each mode of `generate` or of `torch.compile` that `tests/support/placed_modes/unplaced.py` lists,
by model type and release of transformers, with the reason that `stats().unplaced_calls` counts. The tests are
`tests/adapters/test_zoo.py`, `tests/adapters/test_refused.py` and, for chunked prefill,
`tests/adapters/test_prefill_families.py`, on transformers {versions}; `make models` writes this page.

Beside other clips, an audio clip is cut behind its last valid frame, so that padding to longer clips is not
part of it. A clip that is alone in its call keeps its padding, and may have another entry. An entry is one
image, video or clip, except: one entry per tile where the call does not tell which tiles are one image, and
as the notes say. The models of the tests are tiny and have random weights.

A model that is not in this table is split by the signature of its stock methods if they have a known form;
else `attach` refuses it with the reason. Pass a split of
your own as `attach(model, splits=...)`: its docstring describes one.

"""


def read(paths: list[str]) -> dict[str, dict[str, Any]]:
    """Return the results by version of transformers and model type."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            result = json.loads(line)
            models = found.setdefault(result.pop("transformers"), {})
            known = models.setdefault(result.pop("model_type"), {})
            for name, value in result.items():
                known[name] = sorted({*known.get(name, []), *value}) if isinstance(value, list) else value
    return {version: dict(sorted(models.items())) for version, models in sorted(found.items())}


def render(results: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    *oldest, newest = sorted(results, key=lambda version: tuple(map(int, version.split("."))))
    models = results[newest]
    exact = {name: model for name, model in models.items() if "exact" in model}
    refused = {name: model for name, model in models.items() if "exact" not in model}
    versions = " and ".join([newest, *oldest])
    lines = [HEAD.format(versions=versions)]
    lines.append(
        f"## Exact: {len(exact)} model types, {sum(m['by'] == 'name' for m in exact.values())} by name\n\n"
    )
    columns = ["model type", "class", "known by", *(f"{each}s" for each in MODALITIES[:2]), "audio"]
    columns += ["placed", "chunked prefill", *(f"transformers {version}" for version in oldest), "notes"]
    lines.append(_row(columns) + _row(["---"] * len(columns)))
    for name, model in exact.items():
        cells = [f"`{name}`", f"`{model['cls']}`", model["by"]]
        cells += [_modality(model, modality) for modality in MODALITIES]
        cells.append(", ".join(model["placed"]))
        cells.append("yes" if model.get("chunked_prefill") else "")
        cells += [_at(results[version].get(name), model, version) for version in oldest]
        cells.append("; ".join(model["notes"]))
        lines.append(_row(cells))
    lines.append(f"\n## Refused: {len(refused)} model types\n\n" + _row(["model type", "class", "reason"]))
    lines.append(_row(["---"] * 3))
    lines += [_row([f"`{name}`", f"`{each['cls']}`", each["refused"]]) for name, each in refused.items()]
    return "".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _modality(model: dict[str, Any], modality: str) -> str:
    if modality in model["exact"]:
        return "exact"
    return "stock" if modality in model["has"] else ""


def _at(model: dict[str, Any] | None, newest: dict[str, Any], version: str) -> str:
    """The exact modalities of an older release, and the placed ones if they are not those of the newest."""
    if model is None:
        return f"not in {version}"
    if "exact" not in model:
        return "refused"
    exact = ", ".join(model["exact"])
    if model["placed"] == newest["placed"]:
        return exact
    return f"{exact}; placed: {', '.join(model['placed']) or 'none'}"


def main(arguments: list[str]) -> int:
    """Write or check the files; return the exit code."""
    is_check = arguments[:1] == ["--check"]
    found = read(arguments[is_check:])
    stored: dict[str, Any] = json.loads(STORED.read_text()) if STORED.exists() else {}
    if not is_check:
        STORED.write_text(json.dumps(stored | found, indent=1, sort_keys=True) + "\n")
        TABLE.write_text(render(stored | found))
        return 0
    wrong = [f"transformers {version}" for version in found if stored.get(version) != found[version]]
    if not found or TABLE.read_text() != render(stored):
        wrong.append(str(TABLE.relative_to(ROOT)))
    print(f"models_table.py: {', '.join(f'{v}: {len(m)} model types' for v, m in found.items())}")
    if wrong:
        print(f"models_table.py: {', '.join(wrong)} differs from the tests: run make models", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
