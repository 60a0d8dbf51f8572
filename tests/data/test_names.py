import os

import pytest

from latentae.data import BrokenImageError, FolderSource
from latentae.data.names import printable, printable_name
from tests.data.pictures import write_png

ODD = [b"caf\xe9", b"new\nline", b"esc\x1b[31m", "sep\u2028".encode(), b"x" * 240, "rtl\u202e".encode()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 画.png", "plain é 画.png"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("caf\udce9", r"caf\udce9"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u2028", r"\u2028"),
        ("", ""),
    ],
)
def test_names_become_one_printable_line(text, shown):
    assert printable(text) == shown
    assert printable_name(text) == shown


def test_the_middle_of_long_names_is_left_out():
    name = "a" * 400 + "b" * 400
    assert printable(name) == name
    short = printable_name(name)
    assert len(short) <= 300
    assert (short[0], short[-1]) == ("a", "b")
    assert "…" in short


@pytest.mark.parametrize("name", ODD)
def test_errors_about_any_name_are_one_line_of_utf_8(name, tmp_path):
    path = os.fsencode(tmp_path) + b"/" + name + b".png"
    with open(path, "wb") as file:  # noqa: PTH123  # a Path cannot be made of bytes
        file.write(b"<html>")
    write_png(tmp_path / "good.png", 5)
    source = FolderSource(tmp_path)
    index = next(index for index in range(2) if source.name(index) != "good.png")
    with pytest.raises(BrokenImageError) as caught:
        source.load(index, 3)
    assert len(str(caught.value).encode().splitlines()) == 1
    assert str(caught.value).isprintable()
