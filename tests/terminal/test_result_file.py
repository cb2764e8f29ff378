"""A result file is replaced as a whole: after a failed write the earlier file stands, and no other file."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vitcache.terminal.result_file import replace_file

OLD, NEW = "old\n", "new\n" * 50_000
LIMITED = """
import resource, sys
from pathlib import Path
from vitcache.terminal.result_file import replace_file

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    replace_file(Path(sys.argv[1]), "new" * 50_000)
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "results" / "ring.json"
    path.parent.mkdir()
    path.write_text(OLD)
    return path


def files_of(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_replace_file_writes_all_and_leaves_no_second_file(path: Path) -> None:
    replace_file(path, NEW)
    assert path.read_text() == NEW
    replace_file(path.with_suffix(".png"), b"\x89PNG")
    assert path.with_suffix(".png").read_bytes() == b"\x89PNG"
    assert files_of(path) == ["ring.json", "ring.png"]


def test_replace_file_beyond_the_size_limit_keeps_the_earlier_file(path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{errno.EFBIG} {path}\n"
    assert (path.read_text(), files_of(path)) == (OLD, ["ring.json"])


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_replace_file_that_fails_at_any_call_keeps_the_earlier_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(type(error)):
            replace_file(path, NEW)
    assert (path.read_text(), files_of(path)) == (OLD, ["ring.json"])


def test_replace_file_flushes_before_it_renames(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def spy(name: str) -> None:
        stock = getattr(os, name)

        def call(*arguments: object) -> object:
            calls.append(name)
            return stock(*arguments)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("replace")
    replace_file(path, "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_replace_file_in_a_missing_folder_names_the_callers_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "ring.json"
    with pytest.raises(FileNotFoundError) as raised:
        replace_file(path, NEW)
    assert raised.value.filename == str(path)


def test_replace_file_keeps_the_mode_and_a_symbolic_link(path: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("latest.json")
    link.symlink_to(path.name)
    replace_file(link, NEW)
    assert link.is_symlink()
    assert path.read_text() == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_replace_file_of_a_new_file_follows_the_umask(path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(path.with_name("new.json"), NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.with_name("new.json").stat().st_mode) == 0o640


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_replace_file_of_a_device_writes_to_it_and_keeps_it() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        replace_file(Path("/dev/full"), NEW)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


ROOT = Path(__file__).parents[2]
WRITE = re.compile(r"\.(write_text|write_bytes|savefig|export_chrome_trace)\(|open\(\"[awx]|copyfile\(")
# Temporary files, a file that only grows, and the null device.
OTHER_WRITES = {
    "bench/engines/child.py": 1,
    "bench/engines/model_folder.py": 1,
    "bench/harness/result_lines.py": 2,
    "bench/harness/timeline.py": 1,
    "bench/sglang/chat_models.py": 1,
    "bench/sglang/meter.py": 2,
    "bench/sglang/plug_ins.py": 2,
    "bench/traffic/known_models.py": 1,
    "vitcache/demo/__init__.py": 1,
    "vitcache/terminal/result_file.py": 2,
}


def test_every_writer_of_a_result_file_replaces_it() -> None:
    found = {}
    for folder in ("bench", "vitcache"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            number = len(WRITE.findall(path.read_text()))
            if number and not name.startswith("vitcache/bench/"):
                found[name] = number
    assert found == OTHER_WRITES
