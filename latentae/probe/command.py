"""`latentae probe MODEL [MODEL ...] --data NAME --out FOLDER`: compares what models' latents can generate."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from latentae.console import add_family_option, add_reading_options

_DESCRIPTION = """\
Trains the same small denoiser (a DiT, by rectified flow) on each model's latents, with the same number of
steps and tokens, samples through a diffusers pipeline, and writes probe.html, probe.md and results.json:
samples, distances to the data, nearest training images, interpolations, losses, reconstruction.
DiffusionPipeline.from_pretrained loads FOLDER/MODEL/pipeline. An interrupted probe continues where it
stopped."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # argparse has said what is wrong, or printed the help
        return int(stopped.code or 0)
    try:
        return _probe(options)
    except (ValueError, OSError) as error:
        return _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues from a state that is at most a minute old", 130)


def _probe(options: argparse.Namespace) -> int:
    # Not before: torch takes seconds to load, and --help shall not.
    import torch

    from latentae import distributed
    from latentae.probe.denoiser import DenoiserSize
    from latentae.probe.probe import probe
    from latentae.probe.request import ProbeRequest
    from latentae.report.tables import render_terminal

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a probe runs in one process: start it without a launcher")
    given = vars(options)
    size = DenoiserSize(given.pop("width"), given.pop("depth"), given.pop("largest_side"))
    request = ProbeRequest(size=size, **given)
    request.check()
    try:
        with distributed.init_from_environment() as device:
            results = probe(request, device, _say)
    except torch.OutOfMemoryError:
        return _fail("error: the device's memory does not hold this: choose a smaller --batch-size", 2)
    for remark in results.remarks:
        sys.stdout.write(f"note: {remark}\n")
    table = render_terminal(results.generation_table())
    sys.stdout.write(f"\n{table}\n\nreport: {request.out / 'probe.html'}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentae probe",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="what load_autoencoder opens; name=MODEL gives it a name")
    add_family_option(parser, several=True)
    add("--data", required=True, metavar="NAME", help="photos, a path, or a dataset of the hub")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the report goes")
    add("--steps", type=int, default=2000, metavar="N", help="optimizer steps for each model (2000)")
    add("--batch-size", type=int, default=32, metavar="N", help="images per step (32)")
    add("--image-size", type=int, default=64, metavar="N", help="pixels per side (64)")
    add("--seed", type=int, default=0, metavar="N", help="of every random number (0)")
    add("--samples", type=int, default=512, metavar="N", help="images to generate and measure (512)")
    add("--sampling-steps", type=int, default=25, metavar="N", help="steps of the sampler (25)")
    add(
        "--guidance-scale", type=float, default=1.0, metavar="W", help="for labelled data; 1 turns it off (1)"
    )
    add("--unconditional", action="store_true", help="ignore labels")
    add("--no-flips", dest="flips", action="store_false", help="do not mirror images in training")
    add("--learning-rate", type=float, default=1e-3, metavar="R", help="the highest one (0.001)")
    add("--width", type=int, default=192, metavar="N", help="channels of a token, a multiple of 32 (192)")
    add("--depth", type=int, default=6, metavar="N", help="transformer blocks (6)")
    add(
        "--largest-side",
        type=int,
        default=16,
        metavar="N",
        help="at most N tokens along a side (16); 8 is several times as fast on latents of 16 x 16",
    )
    add(
        "--reference-images",
        type=int,
        default=10_000,
        metavar="N",
        help="at most N to compare with (10000)",
    )
    add("--inception", type=Path, metavar="FILE", help="torch-fidelity's Inception weights, for gFID")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode images (0)")
    reading = add_reading_options(parser)
    reading.add_argument("--split", default="train", metavar="NAME", help="to train on (train)")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _fail(message: str, code: int) -> int:
    _say(message)
    return code
