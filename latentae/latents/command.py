"""`latentae stats MODEL --data NAME`: measures a model's latents and calibrates the model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentae.console import add_reading_options, is_first_process

_DESCRIPTION = """\
Measures mean and standard deviation of a model's latents over images, and writes a model whose to_latents()
has zero mean and unit variance under the scaling of every pipeline. Pixels stay the same. Without --out it
only measures. For several devices start it by torchrun or `accelerate launch`."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # argparse has printed an error or the help
        return int(stopped.code or 0)

    # Imported late: torch takes seconds to load, and --help must not.
    from latentae import distributed
    from latentae.data import BrokenImageError
    from latentae.latents.recalibrate import recalibrate

    try:
        with distributed.init_from_environment() as device:
            recalibrate(device=device, say=_say, **vars(options))
    except (ValueError, OSError) as error:
        # Every rank sees a bad argument, so rank 0 reports it; one rank alone sees, and reports, a bad image.
        if is_first_process() or isinstance(error, BrokenImageError):
            sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentae stats", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model's folder, or what else load_autoencoder opens")
    add("--data", required=True, metavar="NAME", help="what it trained on: photos, a path or a hub dataset")
    add("--split", default="train", metavar="NAME", help="the split to measure (train)")
    add("--image-size", type=int, metavar="N", help="pixels of the crops (the sample_size of the model)")
    add("--per-channel", action="store_true", help="give each channel unit variance (KL-VAEs only)")
    add("--max-images", type=int, metavar="N", help="measure at most N crops of images (16384)")
    add("--batch-size", type=int, default=16, metavar="N", help="images at a time, on each process (16)")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode images (0)")
    add("--seed", type=int, default=0, metavar="N", help="of crops, order and posterior samples (0)")
    add("--out", type=Path, metavar="FOLDER", help="where to write the calibrated model")
    add("--in-place", action=_InPlace, nargs=0, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_reading_options(parser)
    return parser


class _InPlace(argparse.Action):
    """Refuses ``--in-place``, an option of earlier versions."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        parser.error("--in-place was removed: use --out FOLDER")


def _say(text: str) -> None:
    """Prints on the first process alone."""
    if is_first_process():
        sys.stdout.write(f"{text}\n")
