import argparse
import io
import sys

import pytest

from latentae.console import add_reading_options, escape_unprintable, is_first_process


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
        "value_range": [-1.0, 2.5],
        "max_pixels": 9,
        "more": "x",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_streams_escape_what_they_cannot_encode(encoding, monkeypatch):
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding))
    escape_unprintable()
    for stream in (sys.stdout, sys.stderr):
        stream.write("caf\udce9 画\n")
        stream.flush()
    shown = {"utf-8": "画"}.get(encoding, r"\u753b")
    for buffer in written.values():
        assert buffer.getvalue().decode(encoding).rstrip() == rf"caf\udce9 {shown}"


def test_streams_that_a_program_has_put_in_their_place_are_left(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    escape_unprintable()
    sys.stdout.write("a")
