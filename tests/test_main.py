"""`vitcache`: its help, the module that a command runs, exit codes, interrupts."""

import os
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from types import ModuleType

import pytest

from vitcache import __main__ as command_line
from vitcache import __version__
from vitcache.terminal.commands import COMMANDS, Command


@pytest.fixture
def command(monkeypatch):
    """Return a function that installs its argument as the `run` of the command `try`."""

    def install(run):
        module = ModuleType("fake_command")
        module.add_arguments = lambda parser: parser.add_argument("--code", type=int, default=0)
        module.run = run
        monkeypatch.setitem(sys.modules, "fake_command", module)
        fake = Command("fake_command", "A question?", "About it.", [("vitcache try --code 3", "3")])
        monkeypatch.setitem(command_line.COMMANDS, "try", fake)

    return install


def run_with_fake_torch(directory, source, *arguments):
    (directory / "torch.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "vitcache", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])},
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


def test_main_error_of_a_command_whose_stdout_is_closed_is_not_hidden(command, monkeypatch):
    def fails(args):
        print("text")
        raise ValueError("an error of the command")

    command(fails)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(ValueError, match="an error of the command"):
            command_line.main(["try"])


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_main_interrupted_during_the_import_of_torch_prints_no_traceback(tmp_path, name):
    done = run_with_fake_torch(tmp_path, "raise KeyboardInterrupt", name)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "vitcache: interrupted"
    assert "Traceback" not in done.stderr


def test_main_info_with_a_broken_torch_reports_it_and_exits_with_0(tmp_path):
    done = run_with_fake_torch(tmp_path, "raise OSError('libtorch.so is broken')", "info")
    assert done.returncode == 0
    assert "lacks    torch         OSError: libtorch.so is broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("rich.progress", "rich: pip install 'vitcache[demo]'"),
        ("skimage", "scikit-image: pip install 'vitcache[demo]'"),
        ("PIL.Image", "pillow: pip install 'vitcache[demo]'"),
        ("prometheus_client", "prometheus-client: pip install 'vitcache[metrics]'"),
        ("transformers", "transformers: pip install 'vitcache[transformers]'"),
        ("timm", "timm: pip install timm"),
    ],
)
def test_main_missing_package_prints_its_name_and_how_to_install_it(command, capsys, module, message):
    def needs_it(args):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    command(needs_it)
    assert command_line.main(["try"]) == 1
    assert capsys.readouterr().err == f"vitcache try needs {message}\n"


def test_main_missing_module_of_vitcache_raises(command):
    def broken(args):
        raise ModuleNotFoundError("No module named 'vitcache.spam'", name="vitcache.spam")

    command(broken)
    with pytest.raises(ModuleNotFoundError, match=r"vitcache\.spam"):
        command_line.main(["try"])


@pytest.mark.parametrize("arguments", [["spam"], ["info", "--spam"]])
def test_main_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(arguments)
    assert exit_.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("usage: vitcache ")
    assert "spam" in errors.splitlines()[-1]


def printed_help(capsys, *arguments):
    """Return the help that `vitcache ARGUMENTS` prints."""
    try:
        code = command_line.main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["no arguments", "--help"])
def test_main_help_has_the_question_and_an_example_of_each_command(monkeypatch, capsys, arguments):
    monkeypatch.setattr(command_line, "import_module", None)  # the help imports no command
    text = printed_help(capsys, *arguments)
    for command in COMMANDS.values():
        assert command.answers.endswith("?")
        assert command.answers in text
        assert f"$ {command.examples[0][0]}\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_main_version_is_that_of_the_package(capsys):
    assert printed_help(capsys, "--version") == f"vitcache {__version__}\n"


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_within_80_columns(monkeypatch, capsys, name, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = printed_help(capsys, name, "--help")
    assert text.startswith(f"usage: vitcache {name} ")
    about = " ".join(text.split())
    assert COMMANDS[name].about in about
    for call, effect in COMMANDS[name].examples:
        assert f"  $ {call}\n      {effect}\n" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_a_command_are_calls_that_it_accepts(name):
    parser = ArgumentParser()
    import_module(COMMANDS[name].module).add_arguments(parser)
    for call, _ in COMMANDS[name].examples:
        program, command, *options = shlex.split(call)
        assert (program, command) == ("vitcache", name)
        assert parser.parse_args(options)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_says_the_default_of_each_option_with_a_value(name):
    parser = ArgumentParser()
    import_module(COMMANDS[name].module).add_arguments(parser)
    actions = [action for action in parser._actions if action.nargs != 0 and action.dest != "help"]
    # A file that is written or read only if it is named has no default.
    silent = [a.option_strings[0] for a in actions if "default" not in (a.help or "") and a.metavar != "FILE"]
    assert silent == []
