"""Every fenced block of README.md and docs/ is run as printed, or checked: see tests/support/doc_pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from doc_pages.blocks import ROOT, SHELL, Block, blocks_of, commands_of, pages
from doc_pages.commands import check_command
from doc_pages.runs import run_page

# A part of a block that this machine cannot run: where it is run.
RUN_ELSEWHERE = {
    "vllm serve": "tests/engines/test_readme.py",
    "examples/time_placement.py": "tests/test_examples.py",
}
# Pages whose `text` blocks are drawings, not outputs.
DRAWINGS = {"docs/architecture.md"}
DIAGRAMS = ("flowchart ", "sequenceDiagram\n")

BLOCKS = {page: blocks_of(page) for page in pages()}
ALL = [block for blocks in BLOCKS.values() for block in blocks]
WITH_PYTHON = [page for page, blocks in BLOCKS.items() if any(block.language == "python" for block in blocks)]


NOT_PYTHON = [block for block in ALL if block.language in (*SHELL, "json", "jsonl", "mermaid")]


@pytest.mark.transformers
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_of_a_page_run_as_printed_and_have_an_effect(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("transformers")
    runs_here = [block for block in BLOCKS[page] if not any(part in block.code for part in RUN_ELSEWHERE)]
    assert run_page(runs_here), "no block has an effect that is checked: see doc_pages.scenes"


@pytest.mark.parametrize("block", NOT_PYTHON, ids=[block.place for block in NOT_PYTHON])
def test_other_blocks_have_no_fault(block: Block) -> None:
    assert faults_of(block) == []


def faults_of(block: Block) -> list[str]:
    """The faults of a block of commands, JSON, lines of JSON, or a diagram. Nothing is run."""
    if block.language in SHELL:
        commands = commands_of(block)
        faults = [f"{' '.join(words)}: {fault}" for words in commands if (fault := check_command(words))]
        return faults if commands else ["no command"]
    if block.language == "mermaid":
        return [] if block.code.startswith(DIAGRAMS) else [f"a diagram begins with one of {DIAGRAMS}"]
    documents = [block.code] if block.language == "json" else block.code.splitlines()
    return [document for document in documents if not json.loads(document)]


def test_every_block_has_a_language_that_a_test_checks() -> None:
    checked = {"python", "json", "jsonl", "mermaid", *SHELL}
    unknown = [
        block.place
        for block in ALL
        if block.language not in checked and not block.is_output and block.page not in DRAWINGS
    ]
    assert unknown == []


def test_blocks_that_run_elsewhere_exist_and_so_do_their_tests() -> None:
    for part, place in RUN_ELSEWHERE.items():
        assert any(part in block.code for block in ALL), f"no page has {part!r}"
        assert (ROOT / place).is_file(), place


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("vitcache memory --trace chats --row-bytes 8KiB", ""),
        ("vitcache memory --trace chats --devise 3", "unrecognized"),
        ("vitcache remember", "invalid choice"),
        ("python -m vitcache info", ""),
        ("python -m vitcache.bench.nothing", "no module"),
        ("make test", ""),
        ("make tests", "no target tests"),
        ('make demo ARGS="--turns 3"', ""),
        ('make demo ARGS="--turn-count 3"', "unrecognized"),
        ("pip install 'vitcache[vllm,metrics]'", ""),
        ("pip install 'vitcache[nothing]'", "no extra ['nothing']"),
        ("pip install torch", "not vitcache"),
        ("rm -r build", "no check"),
    ],
)
def test_check_command_finds_the_fault(command: str, fault: str) -> None:
    [words] = commands_of(Block("page", 1, "bash", command + "\n", ""))
    found = check_command(words)
    assert fault in found
    assert bool(found) == bool(fault)


BROKEN = {
    "raises": "import vitcache\nvitcache.content_key(nothing)\n",
    "has no effect": "x = 1\n",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_a_broken_block_is_found(code: str) -> None:
    block = Block("page", 1, "python", code, "")
    try:
        effects = run_page([block])
    except NameError:
        effects = []
    assert effects == []


def test_a_shown_output_that_differs_is_found() -> None:
    shown = [Block("page", 1, "python", "print(1)\n", ""), Block("page", 4, "text", "2\n", "")]
    with pytest.raises(AssertionError, match="page:4 shows"):
        run_page(shown)


def test_blocks_of_finds_language_line_and_text_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doc_pages.blocks.ROOT", tmp_path)
    (tmp_path / "page.md").write_text("# Title\n\n```python\nx = 1\n```\n\n```text\n1\n```\n")
    assert blocks_of("page.md") == [
        Block("page.md", 3, "python", "x = 1\n", "# Title\n"),
        Block("page.md", 7, "text", "1\n", ""),
    ]
