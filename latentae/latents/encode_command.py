"""`latentae encode MODEL --data NAME --out FOLDER`: stores the latents of a set of images for a denoiser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from latentae.console import add_family_option, add_reading_options, is_first_process, say

_DESCRIPTION = """\
Encodes images once and stores mean and standard deviation of each posterior (of VQ models the continuous
latents) with labels and captions, for latentae.LatentDataset. A job that was killed continues where it
stopped. For several devices start it by torchrun or `accelerate launch`; the files do not depend on their
number."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 1 failed on the way, 2 bad input, 130 interrupted."""
    try:
        options = vars(_parser().parse_args(arguments))
    except SystemExit as stopped:  # argparse has printed an error or the help
        return int(stopped.code or 0)

    # Imported late: torch takes seconds to load, and --help must not.
    import torch

    from latentae import distributed
    from latentae.data import WorkerDiedError
    from latentae.files import FullDiskError
    from latentae.latents.cache.encode import encode_dataset
    from latentae.latents.cache.work import CacheError, FailedElsewhereError

    # Turn the parsed options into the arguments of encode_dataset.
    only = options.pop("codes_only")
    options |= {"codes": options["codes"] or only, "latents": not only}
    model, data, out = (options.pop(name) for name in ("model", "data", "out"))
    try:
        with distributed.init_from_environment() as device:
            report = encode_dataset(model, data, out, device=device, say=_say, **options)
    except FailedElsewhereError:
        return 1
    except (CacheError, FullDiskError, WorkerDiedError) as error:
        return _fail(f"error: {error}", 1, alone=True)  # perhaps only this process has failed
    except torch.OutOfMemoryError:
        return _fail(
            "error: the device's memory does not hold this: choose a smaller --batch-size", 1, alone=True
        )
    except (ValueError, OSError) as error:
        return _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", 130)
    if is_first_process():
        if report.skipped:
            sys.stdout.write(f"note: {len(report.skipped)} image(s) could not be decoded\n")
        sys.stdout.write(f"{report}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("latentae encode", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model's folder, or what else load_autoencoder opens")
    add_family_option(parser)
    add("--data", required=True, metavar="NAME", help="photos, a path, or a dataset of the hub")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the latents go")
    add("--split", default="train", metavar="NAME", help="the split to encode (train)")
    add("--limit", type=int, metavar="N", help="encode N images, evenly spread")
    add("--image-size", type=int, metavar="N", help="pixels (the sample_size of the model)")
    add(
        "--sizes",
        default="crop",
        metavar="HOW",
        help="mixed sizes: crop, bucket (keep the aspect) or refuse",
    )
    add("--flips", action="store_true", help="also store the latents of the mirrored images")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--codes", action="store_true", help="VQ models: also store the indices")
    what.add_argument("--codes-only", action="store_true", help="VQ models: store the indices alone")
    add(
        "--dtype",
        default="float16",
        metavar="NAME",
        help="of the latents: float16, bfloat16 or float32 (float16)",
    )
    add(
        "--precision", default="float32", metavar="NAME", help="of the encoder: float32 or bfloat16 (float32)"
    )
    add("--broken", default="skip", metavar="HOW", help="unreadable images: skip, replace or stop (skip)")
    add("--shard-size", type=int, metavar="N", help="images per file (128 to 1024, by their number)")
    add("--batch-size", type=int, default=16, metavar="N", help="images per batch, on each process (16)")
    add("--num-workers", dest="workers", type=int, default=0, metavar="N", help="processes that decode (0)")
    add("--seed", type=int, default=0, metavar="N", help="chooses what replaces unreadable images (0)")
    reading = add_reading_options(parser)
    reading.add_argument("--label-column", metavar="NAME", help="where labels stand (label, .cls)")
    reading.add_argument(
        "--caption-column",
        metavar="NAME",
        help="where captions stand (caption or text, .txt); of a folder of images a column of metadata.csv",
    )
    reading.add_argument(
        "--no-annotations", dest="annotations", action="store_false", help="store no labels and captions"
    )
    return parser


def _say(text: str) -> None:
    """Prints progress on the first process, and broken images on every process."""
    if is_first_process() or text.startswith(("left out", "replaced")):
        say(text)


def _fail(message: str, code: int, *, alone: bool = False) -> int:
    if alone or is_first_process():
        sys.stderr.write(f"{message}\n")
    return code
