import os

import pytest

from latentae.data import BrokenImageError, FolderSource
from latentae.data.names import expand_braces, expand_pattern, is_pattern, printable, printable_name
from tests.data.pictures import make_files, write_png

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


def test_braces():
    assert expand_braces("a/{008..011}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar", "a/011.tar"]
    assert expand_braces("{a,bc}-{0..1}") == ["a-0", "a-1", "bc-0", "bc-1"]
    assert expand_braces("{9..10}") == ["9", "10"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(ValueError, match=r"\{5\.\.3\} must count upwards"):
        expand_braces("{5..3}.tar")
    with pytest.raises(ValueError, match="over 1000000 numbers"):
        expand_braces("{0..99999999}.tar")


def test_files(tmp_path):
    make_files(tmp_path, "s/01.tar", "s/02.tar", "s/10.tar", "s/deep/03.tar", "s/a.txt")
    found = [path.name for path in expand_pattern(f"{tmp_path}/s/*.tar")]
    assert found == ["01.tar", "02.tar", "10.tar"]
    assert len(expand_pattern(f"{tmp_path}/s/**/*.tar")) == 4
    assert [path.name for path in expand_pattern(f"{tmp_path}/s/{{02..02}}.tar")] == ["02.tar"]
    assert [path.name for path in expand_pattern(f"{tmp_path}/s/{{1,0}}*.tar")] == [
        "10.tar",
        "01.tar",
        "02.tar",
    ]
    assert len(expand_pattern(f"{tmp_path}/s/{{0*,01}}.tar")) == 2  # named twice, taken once


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_files(tmp_path, "1.tar")
    assert expand_pattern("~/{1..1}.tar") == [tmp_path / "1.tar"]


def test_what_is_not_there(tmp_path):
    make_files(tmp_path, "0.tar", "2.tar")
    with pytest.raises(ValueError, match=r"stands for 4 files, of which 2 do not exist, such as .*1\.tar"):
        expand_pattern(f"{tmp_path}/{{0..3}}.tar")
    with pytest.raises(ValueError, match=r"no file is called .*x\*\.tar"):
        expand_pattern(f"{tmp_path}/x*.tar")


def test_what_is_a_pattern(tmp_path):
    assert all(is_pattern(name) for name in ("a/*.tar", "{0..9}.tar", "[ab].tar", "?.tar"))
    assert not any(is_pattern(name) for name in ("photos", "owner/data", "a.tar"))
    (tmp_path / "images[1]").mkdir()
    assert not is_pattern(str(tmp_path / "images[1]"))
