"""What the commands share; of the standard library alone, since `--help` shall not load torch."""

from __future__ import annotations

import argparse
import os

FAMILIES = ("sd1", "sdxl", "sd3", "flux")
"""The families whose scale and shift are known: the names in latentae/models/checkpoints/families.py."""


def is_first_process() -> bool:
    """Whether this process is rank 0 of those that a launcher started, known before they are joined."""
    return os.environ.get("RANK", "0") == "0"


def add_family_option(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds ``--family``, for a model that does not record its scale, such as a published file.

    Args:
        parser: of a command that opens models with ``load_autoencoder``.
        several: whether the command takes several models. The option can then be repeated, and its value may
            name one model: ``--family NAME=FAMILY``. The result is the list ``families``.
    """
    if several:
        parser.add_argument(
            "--family",
            dest="families",
            action="append",
            default=[],
            metavar="[NAME=]FAMILY",
            help=f"the family that gives every model, or the model called NAME, its scale and shift: "
            f"{', '.join(FAMILIES)} (what each model records); can be repeated",
        )
        return
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help="the family that gives the model its scale and shift (what the model records)",
    )


def add_reading_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds a group on reading the data: ``--image-column``, ``--dataset-config``, ``--value-range``."""
    reading = parser.add_argument_group("reading the data, as data.* in training")
    reading.add_argument("--image-column", metavar="NAME", help="the column of tables, the extension in tars")
    reading.add_argument("--dataset-config", metavar="NAME", help="the configuration of a hub dataset")
    reading.add_argument(
        "--value-range", nargs=2, type=float, metavar=("BLACK", "WHITE"), help="of images beyond 8 bits"
    )
    return reading
