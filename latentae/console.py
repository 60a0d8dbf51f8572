"""What the commands share; of the standard library alone, since `--help` shall not load torch."""

from __future__ import annotations

import argparse
import os
import sys


def is_first_process() -> bool:
    """Whether this process is rank 0 of those that a launcher started, known before they are joined."""
    return os.environ.get("RANK", "0") == "0"


def escape_unprintable() -> None:
    """Lets standard output and error escape what their encoding has not, instead of raising an error.

    Names of files need not be UTF-8, and a terminal or a log need not be either.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # what a program puts in their place may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def add_reading_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds a group of options on reading the data, as ``open_source`` takes them."""
    reading = parser.add_argument_group("reading the data, as data.* in training")
    reading.add_argument("--image-column", metavar="NAME", help="the column of tables, the extension in tars")
    reading.add_argument("--dataset-config", metavar="NAME", help="the configuration of a hub dataset")
    reading.add_argument(
        "--value-range", nargs=2, type=float, metavar=("BLACK", "WHITE"), help="of images beyond 8 bits"
    )
    reading.add_argument(
        "--max-pixels",
        type=_positive,
        metavar="N",
        help="of the largest picture that is decoded, larger ones count as unreadable (200000000)",
    )
    return reading


def _positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number
