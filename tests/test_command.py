"""The one boundary of every command: sentences and exit codes instead of tracebacks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from genlip.common.command import Failed, begun, command, new_parser
from genlip.common.files import read_json, write_file
from genlip.common.processes import running


def wait_until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def run(error: BaseException, capsys) -> tuple[int, str]:
    """(exit code, what was said) of a command that raises `error`."""

    @command
    def main(argv=None):
        raise error

    return main([]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("--rows 0: give 1 or more"), 2, "error: --rows 0: give 1 or more\n"),
        (FileNotFoundError(2, "No such file or directory", "a/b.json"), 2, "error: a/b.json: No such file or directory\n"),
        (OSError("the hub cannot be reached"), 2, "error: the hub cannot be reached\n"),
        (SafetensorError("header too large"), 2, "error: header too large\n"),
        (FloatingPointError("loss nan"), 2, "error: loss nan\n"),
        (Failed("a rank died"), 1, "error: a rank died\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here\n"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_a_user_can_mend_is_a_sentence_and_a_code(error, code, said, capsys):
    assert run(error, capsys) == (code, said)


def test_a_fault_of_ours_stays_a_traceback(capsys):
    with pytest.raises(KeyError):
        run(KeyError("x"), capsys)


def test_debug_shows_the_traceback_before_the_sentence(monkeypatch, capsys):
    monkeypatch.setenv("GENLIP_DEBUG", "1")
    code, said = run(ValueError("bad"), capsys)
    assert code == 2 and said.startswith("Traceback") and said.endswith("error: bad\n")


def test_what_stops_a_command_that_has_begun_is_a_failure(capsys):
    @command
    def main(argv=None):
        with begun():
            raise OSError(28, "No space left on device", "out/x")

    assert main([]) == 1
    assert capsys.readouterr().err == "error: out/x: No space left on device\n"


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json cannot be read: it is no JSON .*; copy it again"):
        read_json(tmp_path / "a.json", "copy it again")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"b\.json"):
        write_file(tmp_path / "b.json", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def signals_as_in_a_terminal() -> None:
    """Where the tests run in the background some signals are ignored, and stay so in what they start."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_in_a_sentence_and_what_it_was_writing_is_gone(tmp_path, number, code):
    script = "import sys, time; from pathlib import Path; from genlip.common.command import command\n"
    script += "from genlip.common.files import written_aside; from genlip.common.locks import locked\n@command\ndef main(argv=None):\n"
    script += (
        " with locked(Path(sys.argv[1]), 'x'), written_aside(Path(sys.argv[1], 'export')):\n  print('on', flush=True); time.sleep(60)\n"
    )
    run = [sys.executable, "-c", f"{script}raise SystemExit(main())", str(tmp_path / "out")]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=signals_as_in_a_terminal)
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    assert process.communicate()[1] == "stopped; the same command goes on from here\n" and process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_workers_end_with_a_command_that_is_stopped_or_killed(tmp_path):
    script = "import os, sys, time; from pathlib import Path; from genlip.common.command import command\n"
    script += "from genlip.common.processes import finished\n"
    script += "def work(job):\n Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(60)\n"
    script += "@command\ndef main(argv=None):\n return len(list(finished(work, [1, 2], 2)))\n"
    script += "if __name__ == '__main__':\n raise SystemExit(main())\n"
    (tmp_path / "script.py").write_text(script)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        pids = tmp_path / number.name
        pids.mkdir()
        run = [sys.executable, str(tmp_path / "script.py"), str(pids)]
        here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(
            run, env=here, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=signals_as_in_a_terminal
        )
        wait_until(lambda: len(list(pids.iterdir())) == 2)  # noqa: B023
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal's Ctrl-C
        said = process.communicate(timeout=20)[1]
        assert "Traceback" not in said and process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -9)
        wait_until(lambda: not any(running(int(pid.name)) for pid in pids.iterdir()))  # noqa: B023


def test_examples_are_shown_as_they_are_written():
    assert "examples:\n  one --flag\n  two" in new_parser(prog="x", description="", epilog="examples:\n  one --flag\n  two").format_help()


def test_a_mistyped_flag_is_told_the_nearest(capsys):
    parser = new_parser(prog="x", description="", epilog="")
    parser.add_argument("--attention")
    with pytest.raises(SystemExit):
        parser.parse_args(["--atention", "eager"])
    assert "unrecognized arguments: --atention eager. Did you mean --attention?" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error():
    code = "from genlip.common.command import command\n@command\ndef main(argv=None):\n for _ in range(99999): print('x' * 99)\n return 0"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"$CODE\" | head -n 1; echo ${{PIPESTATUS[0]}}"],
        env=os.environ | {"CODE": f"{code}\nraise SystemExit(main())"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "141" and done.stderr == ""
