"""The answer journal: what a kill leaves behind, what a key keeps apart, what a damaged file says."""

import json

import pytest

from eval_suites.runner.journal import Answer, Journal

KEY = {"weights": "a" * 64, "task": "t", "data": "d", "lmms_eval": "0.7.3"}
SETTINGS = (16, ("\n\n",))


def filled(folder, n=3) -> Journal:
    journal = Journal(folder, KEY)
    for i in range(n):
        journal.add(SETTINGS, {i: Answer(f"answer {i}", f"prompt {i}", "p")})
    return journal


def test_answers_are_on_disk_as_they_come(tmp_path):
    journal = filled(tmp_path)  # not closed: what a killed process leaves
    again = Journal(tmp_path, KEY)
    assert again.answers == journal.answers and again.answers[2, SETTINGS].text == "answer 2"


@pytest.mark.parametrize("text", ["a\u2028b\x85c\r\nd", "", '"', "\ud800"])
def test_any_text_comes_back_as_it_was(tmp_path, text):
    Journal(tmp_path, KEY).add(SETTINGS, {0: Answer(text, "p", "")})
    assert Journal(tmp_path, KEY).answers[0, SETTINGS].text == text


def test_at_every_byte_of_a_cut_file_the_whole_answers_stay(tmp_path):
    path = filled(tmp_path / "whole").path
    content = path.read_bytes()
    for length in range(len(content) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / path.name).write_bytes(content[:length])
        journal = Journal(folder, KEY)
        assert len(journal.answers) == max(content[:length].count(b"\n") - 1, 0)
        journal.add(SETTINGS, {9: Answer("new", "p", "")})  # goes after the last whole line
        assert Journal(folder, KEY).answers == journal.answers


def test_other_keys_and_settings_have_other_answers(tmp_path):
    filled(tmp_path)
    for part in KEY:
        assert not Journal(tmp_path, {**KEY, part: "other"}).answers
    assert Journal(tmp_path, KEY).answers.get((0, (17, SETTINGS[1]))) is None
    assert Journal(tmp_path, KEY).answers.get((0, (16, ()))) is None


def test_a_damaged_line_is_named_and_a_renamed_file_is_refused(tmp_path):
    path = filled(tmp_path).path
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (lines[1][:20], "[" * 100_000 + "]" * 100_000):
        path.write_text("".join([lines[0], damaged + "\n", *lines[2:]]))
        with pytest.raises(ValueError, match="line 2: not an answer"):
            Journal(tmp_path, KEY)
    path.write_text(json.dumps({**KEY, "weights": "b"}) + "\n" + "".join(lines[1:]))
    with pytest.raises(ValueError, match=r"line 1: .*another key"):
        Journal(tmp_path, KEY)


def test_a_journal_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path):
    path, other = filled(tmp_path).path, tmp_path / "other"
    other.write_text("years of work")
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(ValueError, match=r"answers-.* is no plain file .*: remove it"):
        Journal(tmp_path, KEY)
    assert other.read_text() == "years of work"


def test_a_full_disk_loses_only_the_batch(tmp_path, monkeypatch):
    journal = filled(tmp_path)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file is None:
                raise OSError(28, "No space left on device")
            file, self.file = self.file, None
            return file.write(data[:40])  # as much as there was room for

    journal._file = Full(journal._file)
    with pytest.raises(OSError, match="No space left"):
        journal.add(SETTINGS, {i: Answer("x" * 9, "y", "") for i in (7, 8)})
    assert [doc for doc, _ in Journal(tmp_path, KEY).answers if doc < 7] == [0, 1, 2]
