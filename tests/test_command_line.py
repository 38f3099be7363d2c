"""What the commands share: signals, failures and their exit codes, and a help that loads no torch."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dept_vl.command_line import Parser, StopSignal, command_text, paths_by_task, run, say
from feature_extraction.errors import (
    DamagedError,
    DiskFullError,
    IncompatibleError,
    InputDataError,
    Interrupted,
    NumericalError,
    UsageError,
)

COMMANDS = ("train", "extract", "evaluate", "easy_vqa", "report")


class OutOfMemoryError(RuntimeError):
    """Named like torch's, which is recognised by its name."""


def fail(error: BaseException, *arguments: str) -> int:
    """The exit code of a command that fails with an error."""

    def command(given: list[str]) -> None:
        assert given == list(arguments)
        raise error

    return run(command, arguments)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_stop_signal_is_true_once_a_signal_has_come(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with StopSignal() as stop:
        assert not stop
        assert stop.name is None
        os.kill(os.getpid(), getattr(signal, name))
        assert stop
        assert stop.name == name
    assert capsys.readouterr().err == f"{name} received: saving, then stopping. Ctrl-C again stops at once\n"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_a_signal_stops_at_once(first: signal.Signals) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop


def test_a_second_sigterm_changes_nothing() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_the_former_handlers_are_back_afterwards() -> None:
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in watched]
    with StopSignal():
        assert [signal.getsignal(number) for number in watched] != before
    assert [signal.getsignal(number) for number in watched] == before


def test_say_writes_a_line_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    say("one line")
    captured = capsys.readouterr()
    assert captured.err == "one line\n"
    assert captured.out == ""


def test_a_command_is_shown_as_it_can_be_typed() -> None:
    assert command_text("dept_vl.train", ["--output", "my run", "task.prefix=vqa: "]) == (
        "python -m dept_vl.train --output 'my run' 'task.prefix=vqa: '"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (InputDataError("wrong"), 3),
        (IncompatibleError("wrong"), 4),
        (DamagedError("wrong"), 5),
        (DiskFullError("wrong"), 6),
        (DiskFullError(errno.ENOSPC, "wrong"), 6),
        (NumericalError("wrong"), 7),
        (MemoryError("wrong"), 6),
        (OSError(errno.ENOSPC, "wrong"), 6),
        (OSError(errno.EDQUOT, "wrong"), 6),
        (FileNotFoundError("wrong"), 3),
        (PermissionError("wrong"), 3),
        (NotADirectoryError("wrong"), 3),
        (IsADirectoryError("wrong"), 3),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error) == code
    assert capsys.readouterr().err == "error: wrong\n"


def test_a_file_s_own_failure_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json")) == 3
    assert capsys.readouterr().err == "error: [Errno 2] No such file or directory: 'x.json'\n"


def test_no_memory_on_a_device_comes_with_the_settings_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(OutOfMemoryError("CUDA out of memory")) == 6
    assert capsys.readouterr().err == (
        "error: CUDA out of memory. Lower data.batch_size, data.evaluation_batch_size or features.batch_size\n"
    )


def test_a_saved_stop_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(Interrupted("SIGTERM at step 5")) == 75
    assert capsys.readouterr().err == "stopped: SIGTERM at step 5\n"


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Stopped at once. The same command goes on from what was saved\n"


def test_an_unknown_failure_shows_its_traceback_and_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(ZeroDivisionError("by zero")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "ZeroDivisionError: by zero",
        "This is a fault of dept_vl. Please report it with the lines above",
    ]


def test_debug_shows_the_traceback_of_a_known_failure_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(UsageError("wrong"), "--debug") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: wrong"


def test_success_is_zero_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda arguments: None, []) == 0
    assert capsys.readouterr() == ("", "")


def test_a_wrong_command_line_is_a_usage_error_that_names_the_help() -> None:
    parser = Parser("dept_vl.train", "Train.", "  an example")
    parser.add_argument("--data", required=True)
    with pytest.raises(UsageError) as raised:
        parser.parse_args([])
    assert str(raised.value) == "the following arguments are required: --data. See: python -m dept_vl.train --help"


def test_help_has_the_examples_and_the_exit_codes() -> None:
    text = Parser("dept_vl.train", "Train.", "  an example").format_help()
    assert "usage: python -m dept_vl.train" in text
    assert "examples:\n  an example\n" in text
    assert "75 interrupted, the same command goes on" in text


TASKS = ("vqa", "caption")


@pytest.mark.parametrize(
    ("values", "vqa", "caption"),
    [
        (["data"], "data", "data"),
        (["vqa=v", "caption=c"], "v", "c"),
        (["caption=c", "vqa=v"], "v", "c"),
        (["vqa=a=b", "caption=./c d"], "a=b", "./c d"),
        (["./vqa=1"], "./vqa=1", "./vqa=1"),  # a folder's name, since no task is called so
        (["vqa="], "vqa=", "vqa="),
    ],
)
def test_a_path_is_for_every_task_or_for_the_one_before_the_equals_sign(
    values: list[str], vqa: str, caption: str
) -> None:
    assert paths_by_task("--data", values, TASKS) == {"vqa": Path(vqa), "caption": Path(caption)}


def test_paths_come_in_the_order_of_the_options() -> None:
    assert list(paths_by_task("--data", ["caption=c", "vqa=v"], TASKS)) == ["caption", "vqa"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["gqa=g"], "--data gqa=g is about task 'gqa', but --task names vqa, caption"),
        (
            ["a", "b"],
            "--data is given twice for task 'vqa'. Give it once, or once for each task: --data TASK=PATH",
        ),
        (
            ["a", "caption=c"],
            "--data is given twice for task 'caption'. Give it once, or once for each task: --data TASK=PATH",
        ),
        (
            ["vqa=v", "vqa=w"],
            "--data is given twice for task 'vqa'. Give it once, or once for each task: --data TASK=PATH",
        ),
        (["vqa=v"], "--data is missing for caption. Give --data caption=PATH too"),
        ([], "--data is missing for vqa, caption. Give --data vqa=PATH too"),
    ],
)
def test_a_task_without_a_path_or_with_two_and_a_path_of_no_task_are_refused(values: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        paths_by_task("--data", values, TASKS)
    assert str(raised.value) == message


def without_torch(script: str) -> str:
    """The output of a script in a fresh Python, which must not have loaded torch or transformers."""
    check = "\nimport sys\nloaded = {'torch', 'transformers', 'timm'} & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", script + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_of_every_command_loads_no_torch() -> None:
    output = without_torch(
        "import importlib\n"
        f"for name in {COMMANDS}:\n"
        "    try:\n"
        "        importlib.import_module(f'dept_vl.{name}').main(['--help'])\n"
        "    except SystemExit as done:\n"
        "        assert done.code == 0\n"
    )
    assert [line.split()[3] for line in output.splitlines() if line.startswith("usage: ")] == [
        f"dept_vl.{name}" for name in COMMANDS
    ]


def test_a_wrong_setting_is_told_without_loading_torch() -> None:
    without_torch(
        "from dept_vl.command_line import run\n"
        "from dept_vl.train import main\n"
        "needed = ['--task', 'vqa', '--data', 'd', '--features', 'f', '--output', 'o']\n"
        "assert run(main, [*needed, 'training.step=3']) == 2\n"
        "assert run(main, [*needed, '--method', 'dep']) == 2\n"
        "assert run(main, needed[2:]) == 2\n"
    )


def test_the_package_its_records_its_scores_and_its_tasks_load_no_torch() -> None:
    without_torch(
        "import importlib, pkgutil\n"
        "import dept_vl, dept_vl.types, dept_vl.config, dept_vl.leaderboard, feature_extraction.store.reader\n"
        "for package in ('dept_vl.metrics', 'dept_vl.tasks'):\n"
        "    module = importlib.import_module(package)\n"
        "    for found in pkgutil.iter_modules(module.__path__):\n"
        "        importlib.import_module(f'{package}.{found.name}')\n"
    )


def test_the_package_offers_its_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import dept_vl

    for name in dept_vl.__all__:
        assert getattr(dept_vl, name).__name__ == name
    with pytest.raises(AttributeError) as raised:
        dept_vl.predictor  # noqa: B018 - the attribute is the test
    assert str(raised.value) == (
        "module 'dept_vl' has no attribute 'predictor'; it offers "
        "DecomposedPrompt, FeatureStore, Predictor, evaluate_run, solve_budget"
    )
