"""`latentae reconstruct IMAGE_OR_FOLDER OUT --model MODEL`: writes images beside their reconstructions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentae.console import add_picture_options

if TYPE_CHECKING:
    from latentae.evaluation.reconstruct import Comparison

_DESCRIPTION = """\
Writes each image beside its reconstruction, the image on the left, as a PNG of full size, and prints the PSNR
of each and the mean. Pictures are converted to the model's channels (a model of one channel sees them grey);
.npy arrays must have as many. Of more than three channels the first three are shown. Images that cannot be
read or are too small are named and skipped."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # argparse has printed the error or the help
        return int(stopped.code or 0)
    try:
        return _reconstruct(options)
    except (ValueError, OSError) as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the pictures written so far are whole", 130)


def _reconstruct(options: argparse.Namespace) -> int:
    # Imported here, so that --help does not wait for torch.
    import torch

    from latentae.data.arrays import check_value_range
    from latentae.evaluation.reconstruct import plan_jobs, run_jobs
    from latentae.models import load_autoencoder

    jobs = plan_jobs(options.images, options.out, options.overwrite)
    value_range = check_value_range(options.value_range)
    model = load_autoencoder(options.model, torch_dtype=torch.float32)
    if options.tile:
        model.enable_tiling()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return _report(
        run_jobs(model, jobs, options.max_side, value_range=value_range, max_pixels=options.max_pixels)
    )


def _report(comparisons: Iterable[Comparison]) -> int:
    """Prints each image's result when it is known, and the mean at the end."""
    ratios: list[float] = []
    reasons: list[str] = []
    for comparison in comparisons:
        name = comparison.job.name
        if comparison.skipped:
            reasons.append(f"{name}: {comparison.skipped}")
            sys.stderr.write(f"skipped {reasons[-1]}\n")
            continue
        ratios.append(comparison.psnr)
        height, width = comparison.size
        sys.stdout.write(
            f"{name}: {width}x{height} pixels, PSNR {comparison.psnr:.2f} dB, {comparison.job.picture}\n"
        )
    if not ratios:
        return _fail(f"none of {len(reasons)} image(s) could be reconstructed", 2)
    skipped = f", {len(reasons)} skipped" if reasons else ""
    sys.stdout.write(f"mean of {len(ratios)} image(s): PSNR {sum(ratios) / len(ratios):.2f} dB{skipped}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentae reconstruct", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("images", type=Path, metavar="IMAGE_OR_FOLDER", help="a picture, a .npy file, or a folder of them")
    add("out", type=Path, metavar="OUT", help="a PNG file, or a folder")
    add("--model", required=True, metavar="MODEL", help="a model: what load_autoencoder opens")
    add("--max-side", type=_positive, metavar="N", help="shrink longer images to N pixels first")
    add("--tile", action="store_true", help="work in overlapping tiles: less memory for large images")
    add("--overwrite", action="store_true", help="replace existing pictures")
    add_picture_options(parser)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is no number of pixels: give 1 or more")
    return number


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code
