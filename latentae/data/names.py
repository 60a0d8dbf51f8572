"""Names of images, which may be any bytes that a file system takes, as text for people."""

from __future__ import annotations

_LONGEST = 300


def printable(text: str, longest: int | None = None) -> str:
    r"""`text` in one line that every stream of UTF-8 takes.

    Bytes that are no UTF-8, which Python keeps in file names as surrogates, line breaks and other control
    characters come out escaped, like `\udcff` and `\n`. Of a text longer than `longest` characters the
    middle is left out.
    """
    if not text.isprintable():  # surrogates, control characters and some spaces are not
        text = "".join(c if c.isprintable() or c == "\u3000" else _escape(c) for c in text)
    if longest is not None and len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text


def printable_name(name: str) -> str:
    """`printable`, with the middle left out of names of more than 300 characters."""
    return printable(name, _LONGEST)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
