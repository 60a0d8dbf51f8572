"""`latentae evaluate MODEL [MODEL ...] --data NAME --out FOLDER`: how well models reconstruct."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from latentae.console import add_reading_options, is_first_process, say

_DESCRIPTION = """\
Measures how well models reconstruct the same images, and writes results.json, results.md and report.html. An
evaluation that was interrupted goes on where it stopped. For several devices start it by torchrun or
`accelerate launch`; the numbers do not depend on how many there are."""

_EPILOG = """\
protocols: imagenet-256 (shorter side 256, central square: what most published numbers use), imagenet-512,
native (whole images at their own size), resize-N (as imagenet-N), crop-N (a central square, not resized).
rFID and KID need the Inception weights of torch-fidelity: they are taken from its cache, or downloaded, or
given by --inception; without them these metrics are left out."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # argparse has said what is wrong, or printed the help
        return int(stopped.code or 0)
    try:
        return _evaluate(options)
    except (ValueError, OSError) as error:
        return _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", 130)


def _evaluate(options: argparse.Namespace) -> int:
    # Not before: torch takes seconds to load, and --help shall not.
    import torch

    from latentae import distributed
    from latentae.evaluation.evaluate import Request, evaluate
    from latentae.evaluation.measuring import Settings
    from latentae.report.tables import caveats, render_terminal

    given = vars(options)
    running = {name: given.pop(name) for name in ("batch_size", "num_workers", "cycle_images")}
    given["value_range"] = None if options.value_range is None else tuple(options.value_range)
    request = Request(settings=Settings(**running), **given)
    request.check()  # also before a process group, which takes seconds too
    torch.backends.cudnn.allow_tf32 = False  # or float32 would mean 10 bits on some GPUs, and 23 on others
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
    add("--split", metavar="NAME", help="of the data (validation, else test, else the first there is)")
    add("--protocol", default="imagenet-256", metavar="NAME", help="how images are prepared (imagenet-256)")
    add("--limit", type=int, metavar="N", help="measure N images, evenly spread")
    add("--batch-size", type=int, default=16, metavar="N", help="images at a time, a process (16)")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode images (0)")
    add("--precision", default="float32", metavar="NAME", help="of the models: float32 or bfloat16 (float32)")
    add("--cycle-images", type=int, default=32, metavar="N", help="images for the drift of n rounds (32)")
    add("--inception", type=Path, metavar="FILE", help="torch-fidelity's Inception weights")
    add("--no-features", dest="features", action="store_false", help="leave out rFID, KID and FD-VGG16")
    add("--overwrite", action="store_true", help="replace a report that is there already")
    add_reading_options(parser)
    return parser


def _say(text: str) -> None:
    """Progress, once however many processes there are."""
    if is_first_process():
        say(text)


def _fail(message: str, code: int) -> int:
    _say(message)
    return code
