"""`latentae inspect MODEL --data NAME --out FOLDER`: what a model's latent space looks like."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from latentae.console import add_family_option, add_reading_options

_DESCRIPTION = """\
Shows what a model's latents are like over images: histograms and correlations of the channels, the power
spectrum beside that of the images, interpolations, decoded noise, one channel moved at a time, and the codes
of a VQ model. Writes inspect.html, inspect.json, and a PNG of each figure."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        options = vars(_parser().parse_args(arguments))
    except SystemExit as stopped:  # argparse has said what is wrong, or printed the help
        return int(stopped.code or 0)

    # Not before: torch takes seconds to load, and --help shall not.
    import torch

    from latentae import distributed
    from latentae.latents.inspection.inspect import PAGE, inspect

    try:
        with distributed.init_from_environment() as device:
            sections = inspect(device=device, say=_say, **options)
    except (ValueError, OSError) as error:
        return _fail(f"error: {error}", 2)
    except torch.OutOfMemoryError:
        return _fail("error: the device's memory does not hold this: choose a smaller --batch-size", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing is written", 130)
    for part in sections:
        for remark in part.remarks:
            sys.stdout.write(f"{part.name}: {remark}\n")
    sys.stdout.write(f"figures: {options['out'] / PAGE}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentae inspect", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model's folder, or what else load_autoencoder opens")
    add_family_option(parser)
    add("--data", required=True, metavar="NAME", help="photos, a path, or a dataset of the hub")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the figures go")
    add("--split", metavar="NAME", help="of the data (validation, else test, else the first there is)")
    add("--image-size", type=int, metavar="N", help="pixels of the central crops (the model's sample_size)")
    add("--max-images", type=int, default=256, metavar="N", help="measure N images, evenly spread (256)")
    add("--batch-size", type=int, default=16, metavar="N", help="images at a time (16)")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode images (0)")
    add("--seed", type=int, default=0, metavar="N", help="of posterior samples and noise (0)")
    add("--overwrite", action="store_true", help="replace an inspection that is there already")
    add_reading_options(parser)
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _fail(message: str, code: int) -> int:
    _say(message)
    return code
