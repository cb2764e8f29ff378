"""`python -m vitcache`: the module that a command runs, exit codes, interrupts."""

import os
import subprocess
import sys
from types import ModuleType

import pytest

from vitcache import __main__ as command_line


@pytest.fixture
def command(monkeypatch):
    """Return a function that installs its argument as the `run` of the command `try`."""

    def install(run):
        module = ModuleType("fake_command")
        module.add_arguments = lambda parser: parser.add_argument("--code", type=int, default=0)
        module.run = run
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(command_line.COMMANDS, "try", ("fake_command", "a command"))

    return install


def run_with_fake_torch(directory, source, *arguments):
    (directory / "torch.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "vitcache", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
    )


def test_main_returns_the_exit_code_of_the_command(command):
    command(lambda args: args.code)
    assert command_line.main(["try", "--code", "7"]) == 7


def test_main_interrupted_returns_130_and_prints_one_line(command, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    command(interrupted)
    assert command_line.main(["try"]) == 130
    assert capsys.readouterr().err == "vitcache: interrupted\n"


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_main_interrupted_during_the_import_of_torch_prints_no_traceback(tmp_path, name):
    done = run_with_fake_torch(tmp_path, "raise KeyboardInterrupt", name)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "vitcache: interrupted"
    assert "Traceback" not in done.stderr


def test_main_info_with_a_broken_torch_reports_it_and_exits_with_0(tmp_path):
    done = run_with_fake_torch(tmp_path, "raise OSError('libtorch.so is broken')", "info")
    assert done.returncode == 0
    assert "lacks  torch: OSError: libtorch.so is broken" in done.stdout


def test_main_missing_package_prints_one_line_that_names_the_extra(command, capsys):
    def needs_rich(args):
        raise ModuleNotFoundError("No module named 'rich'", name="rich.progress")

    command(needs_rich)
    assert command_line.main(["try"]) == 1
    assert capsys.readouterr().err == "vitcache try needs rich.progress: pip install 'vitcache[demo]'\n"


def test_main_missing_module_of_vitcache_raises(command):
    def broken(args):
        raise ModuleNotFoundError("No module named 'vitcache.spam'", name="vitcache.spam")

    command(broken)
    with pytest.raises(ModuleNotFoundError, match=r"vitcache\.spam"):
        command_line.main(["try"])


@pytest.mark.parametrize("arguments", [[], ["spam"], ["info", "--spam"]])
def test_main_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m vitcache" in capsys.readouterr().err


def test_main_help_imports_no_command(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "import_module", None)
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["--help"])
    assert exit_.value.code == 0
    assert "demo" in capsys.readouterr().out
