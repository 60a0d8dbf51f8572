"""What the commands share; of the standard library alone, since `--help` shall not load torch."""

from __future__ import annotations

import argparse
import os


def is_first_process() -> bool:
    """Whether this process is rank 0 of those that a launcher started, known before they are joined."""
    return os.environ.get("RANK", "0") == "0"


def add_reading_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds a group on reading the data: ``--image-column``, ``--dataset-config``, ``--value-range``."""
    reading = parser.add_argument_group("reading the data, as data.* in training")
    reading.add_argument("--image-column", metavar="NAME", help="the column of tables, the extension in tars")
    reading.add_argument("--dataset-config", metavar="NAME", help="the configuration of a hub dataset")
    reading.add_argument(
        "--value-range", nargs=2, type=float, metavar=("BLACK", "WHITE"), help="of images beyond 8 bits"
    )
    return reading
