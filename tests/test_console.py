import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from latentae import cli
from latentae.console import (
    FAMILIES,
    add_family_option,
    add_reading_options,
    is_first_process,
    outlive_output,
    output_pipe_is_closed,
    progress_bar,
    say,
)


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
def test_which_process_speaks(rank, first, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first


def test_reading_options():
    parser = argparse.ArgumentParser()
    add_reading_options(parser).add_argument("--more")
    given = ["--image-column", "png", "--value-range", "-1", "2.5", "--max-pixels", "9", "--more", "x"]
    assert vars(parser.parse_args(given)) == {
        "image_column": "png",
        "dataset_config": None,
        "value_range": (-1.0, 2.5),
        "max_pixels": 9,
        "more": "x",
    }


@contextmanager
def output_to_a_pipe():
    """Standard output as a pipe; gives what closes its reader."""
    reader, writer = os.pipe()
    before = sys.stdout
    with os.fdopen(writer, "w", errors="strict") as sys.stdout:
        try:
            yield lambda: os.close(reader)
        finally:
            sys.stdout = before


def test_output_that_nobody_reads_is_dropped():
    with output_to_a_pipe() as close:
        before = sys.stdout
        with outlive_output():
            sys.stdout.write("read\n")
            sys.stdout.flush()
            assert not output_pipe_is_closed()
            close()
            for _ in range(3):
                sys.stdout.write("not read \udce4\n")
                sys.stdout.flush()
            assert output_pipe_is_closed()
            sys.stdout.write("still in the buffer")
        assert sys.stdout is before


@pytest.mark.parametrize("flush", [True, False])
def test_a_full_disk_is_told(monkeypatch, flush):
    @outlive_output()
    def write():
        sys.stdout.write("lost\n")
        if flush:
            sys.stdout.flush()

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit, match="the output cannot be written: No space left"):
            write()
        assert sys.stdout is full


CLOSED_STREAMS = """
import os, sys
from latentae.console import outlive_output
with outlive_output():
    print("nowhere")
    print("nowhere", file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2
        os.write(1, b"nowhere")
"""


def test_streams_that_were_closed_before_the_start(tmp_path):
    command = f'exec "{sys.executable}" -c "$0" "$1" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, CLOSED_STREAMS, tmp_path / "file"]).returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("command", ["--help", "train vqgan --help", "compare --help", "encode --help"])
def test_every_command_outlives_its_output(command, capfd):
    with output_to_a_pipe() as close:
        close()
        try:
            code = cli.main(command.split())
        except SystemExit as left:
            code = left.code
    assert code == 0
    assert capfd.readouterr().err == ""


def test_family_option():
    parser = argparse.ArgumentParser()
    add_family_option(parser)
    assert parser.parse_args([]).family is None
    assert [parser.parse_args(["--family", name]).family for name in FAMILIES] == list(FAMILIES)
    with pytest.raises(SystemExit):
        parser.parse_args(["--family", "sd9"])
    several = argparse.ArgumentParser()
    add_family_option(several, several=True)
    assert several.parse_args([]).families == []
    assert several.parse_args(["--family", "a=sd1", "--family", "flux"]).families == ["a=sd1", "flux"]


def test_progress_in_a_log_is_a_line_at_the_end(monkeypatch):
    said = []
    with progress_bar(3, "images encoded", said.append) as bar:
        bar.update(1)
        bar.update(2)
    (line,) = said
    assert line.startswith("3 of 3 images encoded, ")
    assert "images/s" in line
    progress_bar(0, "images encoded", said.append).close()
    monkeypatch.setenv("RANK", "1")
    with progress_bar(3, "images encoded", said.append) as bar:
        bar.update(3)
    assert len(said) == 1


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr("latentae.console._SECONDS_BETWEEN_LINES", 0.02)
    said = []
    with progress_bar(100, "images encoded", said.append) as bar:
        for _ in range(4):
            time.sleep(0.03)
            bar.update(25)
    assert [line.partition(" images")[0] for line in said[:4]] == [f"{n} of 100" for n in (25, 50, 75, 100)]


def test_progress_on_a_terminal_is_a_bar_with_messages_above(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    said = []
    with progress_bar(2, "images encoded", said.append) as bar:
        bar.update(2)
        say("left out: a.png")
    shown = capsys.readouterr().err
    assert said == []
    assert "\nleft out: a.png\n" in shown.replace("\r", "\n")
    assert "images encoded: 100%" in shown
