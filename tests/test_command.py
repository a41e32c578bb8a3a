"""The one boundary of every command: sentences and exit codes instead of tracebacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from genlip.common.command import Failed, begun, command, new_parser
from genlip.common.files import read_json, write_file


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
