"""How commands end: the code, the last line, and what a closed pipe or a full disk does."""

import errno
import os
import pty
import signal
import subprocess
import sys

import pytest
from support import ROOT

from pipelines.command.exit_codes import CommandFailedError, exit_code_of, stop_like_ctrl_c

COMMANDS = ("run", "benchmark", "deliver", "check_data", "methods")
SLOW = {"torch", "ray", "mlflow", "open_clip", "pyarrow"}


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


class GoneError(CommandFailedError):
    exit_code = 3


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (ValueError("no such key\nmore of it"), 2, "error (exit code 2): no such key"),
        (CommandFailedError("vop: diverged"), 1, "error (exit code 1): vop: diverged"),
        (GoneError("too many"), 3, "error (exit code 3): too many"),
        (KeyboardInterrupt(), 130, "interrupted (exit code 130): the same command goes on from here"),
        (ZeroDivisionError("x"), 1, "error (exit code 1): ZeroDivisionError: x"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/a.json"),
            1,
            "error (exit code 1): the disk is full: /out/a.json; make room, and the same command goes on from"
            " here",
        ),
        (
            RuntimeError("sqlite3.OperationalError: database or disk is full"),
            1,
            "error (exit code 1): the disk is full; make room, and the same command goes on from here",
        ),
    ],
)
def test_the_last_line_says_the_code_and_why(error, code, last, capsys):
    assert exit_code_of(raising(error)) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == last
    assert ("Traceback" in "".join(lines)) == isinstance(error, ZeroDivisionError)


def test_a_full_disk_is_seen_through_what_was_raised_from_it(capsys):
    def command() -> int:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error

    assert exit_code_of(command) == 1
    assert "the disk is full" in capsys.readouterr().err


WORKS_ON = """
import sys
from pathlib import Path
from pipelines.command.exit_codes import exit_code_of

def command():
    for number in range(20_000):
        print(number)
    Path(sys.argv[1]).write_text("it got to its end")
    return 0

sys.exit(exit_code_of(command))
"""


@pytest.mark.parametrize("reader", ["| head -n 1", ">&-"])
def test_work_goes_on_when_nobody_reads_its_output(tmp_path, reader):
    (tmp_path / "works_on.py").write_text(WORKS_ON)
    command = f"{sys.executable} {tmp_path}/works_on.py {tmp_path}/done {reader}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "done").read_text() == "it got to its end"


STOPPED = """
import sys, time
from pathlib import Path
from pipelines.command.exit_codes import exit_code_of, stop_like_ctrl_c

def command():
    stop_like_ctrl_c()
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
    finally:
        print("a last word")
        Path(sys.argv[1]).write_text("in order")

Path(sys.argv[1] + ".code").write_text(str(exit_code_of(command)))
"""


@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "terminal"])
def test_a_command_that_is_stopped_or_loses_its_terminal_ends_in_order(tmp_path, way):
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", STOPPED, str(tmp_path / "end")])
    while b"ready" not in os.read(terminal, 1000):
        pass
    if way == "terminal":
        os.close(terminal)
    else:
        os.kill(child, getattr(signal, way))
    os.waitpid(child, 0)
    assert (tmp_path / "end").read_text() == "in order"
    assert (tmp_path / "end.code").read_text() == "130"


def test_what_was_started_with_nohup_outlives_its_terminal():
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop_like_ctrl_c()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


IMPORTS = """
import runpy, sys
sys.argv = ["pipelines/{command}.py", "--help"]
try:
    runpy.run_path("pipelines/{command}.py", run_name="__main__")
except SystemExit as end:
    print(end.code, *sorted({slow} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_waits_for_no_slow_library(command):
    code = IMPORTS.format(command=command, slow=SLOW)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr.strip() == "0"
    assert "usage: pipelines/" in ended.stdout


def test_a_mistake_in_a_config_waits_neither_for_ray_nor_for_mlflow():
    code = IMPORTS.replace('"--help"', '"conf/quickstart.yaml", "foo=1"')
    code = code.format(command="run", slow=SLOW - {"pyarrow"})
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    mistake, modules = ended.stderr.strip().splitlines()
    assert "foo: unknown key" in mistake
    assert modules == "2"
