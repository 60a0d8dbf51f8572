"""`latentae evaluate MODEL [MODEL ...] --data NAME --out FOLDER`: how well models reconstruct."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from latentae.console import add_reading_options, is_first_process, say

_DESCRIPTION = """\
Measures how well models reconstruct the same images, and writes results.json, results.md and report.html. An
interrupted evaluation continues where it stopped. For several devices start it by torchrun or `accelerate
launch`; the numbers do not depend on their number."""

_EPILOG = """\
protocols: imagenet-256 (shorter side 256, central square: what most published numbers use), imagenet-512,
native (whole images at their own size), resize-N (as imagenet-N), crop-N (a central square, not resized).
rFID and KID need the Inception weights of torch-fidelity, from its cache, a download or --inception. Without
them these metrics are left out."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # argparse has printed the error or the help
        return int(stopped.code or 0)
    try:
        return _evaluate(options)
    except (ValueError, OSError) as error:
        return _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", 130)


def _evaluate(options: argparse.Namespace) -> int:
    # Imported here, so that --help does not wait for torch.
    import torch

    from latentae import distributed
    from latentae.evaluation.evaluate import Request, evaluate
    from latentae.evaluation.measuring import Settings
    from latentae.report.tables import caveats, render_terminal

    given = vars(options)
    running = {name: given.pop(name) for name in ("batch_size", "num_workers", "cycle_images")}
    request = Request(settings=Settings(**running), **given)
    request.check()  # also before a process group, which takes seconds too
    torch.backends.cudnn.allow_tf32 = False  # TF32 would keep only 10 bits of a float32's 23
    try:
        with distributed.init_from_environment() as device:
            results = evaluate(request, device, _say)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return _fail("error: the device's memory does not hold this: choose a smaller --batch-size", 2)
    if is_first_process():
        for remark in caveats(results):
            sys.stdout.write(f"note: {remark}\n")
        images = f"{results.protocol['images']} images of {request.data}, {request.protocol}"
        table = render_terminal(results)
        sys.stdout.write(f"\n{images}\n\n{table}\n\nreport: {request.out / 'report.html'}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "latentae evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="what load_autoencoder opens; name=MODEL gives it a name")
    add("--data", required=True, metavar="NAME", help="photos, a path, or a dataset of the hub")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the report goes")
    add("--split", metavar="NAME", help="of the data (validation, else test, else the first)")
    add("--protocol", default="imagenet-256", metavar="NAME", help="preparation of the images (imagenet-256)")
    add("--limit", type=int, metavar="N", help="measure N images, evenly spread")
    add("--batch-size", type=int, default=16, metavar="N", help="images at a time, per process (16)")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode images (0)")
    add("--precision", default="float32", metavar="NAME", help="of the models: float32 or bfloat16 (float32)")
    add("--cycle-images", type=int, default=32, metavar="N", help="images for the drift of n rounds (32)")
    add("--inception", type=Path, metavar="FILE", help="torch-fidelity's Inception weights")
    add("--no-features", dest="features", action="store_false", help="leave out rFID, KID and FD-VGG16")
    add("--overwrite", action="store_true", help="replace an existing report")
    add_reading_options(parser)
    return parser


def _say(text: str) -> None:
    """Writes a message once, from the first process."""
    if is_first_process():
        say(text)


def _fail(message: str, code: int) -> int:
    _say(message)
    return code
