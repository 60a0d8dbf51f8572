"""The commands that write models, latents or images: stats, encode, export and reconstruct."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from latentae.commands.options import (
    SEVERAL_DEVICES,
    Command,
    CommandParser,
    add_decoding,
    open_device,
    write,
)
from latentae.console import FAMILIES, CommandError, errors_as, say
from latentae.export import DTYPES, FORMATS


def _stats_options(parser: CommandParser) -> None:
    parser.add_model()
    parser.add_data(split="train")
    parser.add_number("--image-size", "side of the crops in pixels; omitted: the model's sample_size")
    parser.add_switch("--per-channel", "give each channel unit variance (KL-VAEs only)")
    parser.add_number("--max-images", "measure at most N crops; omitted: 16384")
    parser.add_batch_size()
    parser.add_workers()
    parser.add_seed("crops, order and posterior samples")
    parser.add_resizing_by_alpha()
    what = "folder for the calibrated model; omitted: measure only"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=what)
    hidden = argparse.SUPPRESS
    parser.add_argument("--in-place", action=_InPlace, nargs=0, dest=hidden, help=hidden)


class _InPlace(argparse.Action):
    """Refuses ``--in-place``, an option of earlier versions."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        parser.error("--in-place was removed: use --out FOLDER")


def _stats(**options: Any) -> None:
    from latentae.data import BrokenImageError
    from latentae.latents.recalibrate import recalibrate

    # Every process sees a bad argument, and the first reports it. Only one process may see a broken image.
    broken = errors_as(2, BrokenImageError, alone=True)
    with broken, open_device() as device:
        recalibrate(device=device, say=write, **options)


STATS = Command(
    "stats",
    _stats,
    _stats_options,
    "Measures the mean and standard deviation of a model's latents over images. With --out it also\n"
    "writes a calibrated model: its to_latents() gives zero mean and unit variance under the scaling that\n"
    f"every pipeline applies, and its pixels stay the same.\n{SEVERAL_DEVICES}.",
    example="latentae stats path/to/model --data path/to/images --out calibrated",
)


def _encode_options(parser: CommandParser) -> None:
    parser.add_model()
    parser.add_family()
    reading = parser.add_data(split="train")
    parser.add_out("the latents")
    parser.add_number("--limit", "encode N images, evenly spread; omitted: all")
    parser.add_number("--image-size", "side of the images in pixels; omitted: the model's sample_size")
    sizes, what = (
        ("crop", "bucket", "refuse"),
        "images of several sizes: take central squares, keep the aspect ratio, or refuse them",
    )
    parser.add_argument("--sizes", default="crop", choices=sizes, help=what)
    parser.add_resizing_by_alpha()
    parser.add_switch("--flips", "also store the latents of the mirrored images")
    codes = parser.add_mutually_exclusive_group()
    codes.add_argument("--codes", action="store_true", help="also store the code indices (VQ models)")
    codes.add_argument("--codes-only", action="store_true", help="store only the code indices (VQ models)")
    dtypes = ("float16", "bfloat16", "float32")
    parser.add_argument("--dtype", default="float16", choices=dtypes, help="dtype of the stored latents")
    parser.add_precision("encoder")
    broken, what = ("skip", "replace", "stop"), "what to do with unreadable images"
    parser.add_argument("--broken", default="skip", choices=broken, help=what)
    parser.add_number("--shard-size", "images per file; omitted: 128 to 1024, by the number of images")
    parser.add_batch_size()
    parser.add_workers(dest="workers")
    parser.add_seed("the replacements of unreadable images")
    what = "column that holds the labels; omitted: label, .cls"
    reading.add_argument("--label-column", metavar="NAME", help=what)
    what = "column that holds the captions, also in metadata.csv; omitted: caption or text, .txt"
    reading.add_argument("--caption-column", metavar="NAME", help=what)
    what = "do not store labels and captions"
    reading.add_argument("--no-annotations", dest="annotations", action="store_false", help=what)


def _encode(*, model: str, data: str, out: Path, codes: bool, codes_only: bool, **options: Any) -> None:
    from latentae.data import WorkerDiedError
    from latentae.files import FullDiskError
    from latentae.latents.cache.encode import encode_dataset
    from latentae.latents.cache.work import CacheError, FailedElsewhereError

    options |= {"codes": codes or codes_only, "latents": not codes_only}
    # Perhaps only this process has failed. The others then raise FailedElsewhereError, and print nothing.
    with errors_as(1, CacheError, FullDiskError, WorkerDiedError, alone=True):
        try:
            with open_device() as device:
                report = encode_dataset(model, data, out, device=device, say=_say_encode, **options)
        except FailedElsewhereError as error:
            raise CommandError("", 1) from error
    if report.skipped:
        write(f"note: {len(report.skipped)} image(s) could not be decoded")
    write(f"{report}")


def _say_encode(text: str) -> None:
    """Writes progress from the first process, and broken images from every process."""
    say(text, every_process=text.startswith(("left out", "replaced")))


ENCODE = Command(
    "encode",
    _encode,
    _encode_options,
    "Encodes images once, and stores the mean and standard deviation of each posterior (VQ models: the\n"
    "continuous latents) with labels and captions. latentae.LatentDataset reads them. An interrupted job\n"
    f"continues where it stopped.\n{SEVERAL_DEVICES};\nthe files do not depend on the number of processes.",
    example="latentae encode run --data path/to/images --image-size 256 --flips --out latents",
    interrupted="the same command continues from here",
    less_memory="choose a smaller --batch-size or --image-size; what is encoded is kept",
)


def _export_options(parser: CommandParser) -> None:
    parser.add_model(metavar="RUN_OR_MODEL")
    what = "ldm and comfyui: one file; the others: a folder"
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help=what)
    what = "family whose scale and shift ComfyUI applies; also used if the model records none"
    parser.add_argument("--family", choices=FAMILIES, help=what)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES, help="dtype of the weights")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="PATH", help="folder, or .safetensors file"
    )
    parser.add_overwrite("an earlier export at PATH")
    parser.add_number(
        "--norm-num-groups", "groups of the normalisation; needed where a file does not show them"
    )
    what = "rescale the weights so that the model runs in float16 without NaN; needs --data"
    parser.add_switch("--half-safe", what)
    parser.add_data(split="train", required=False)
    what = "side of the images in pixels; omitted: the model's sample_size, at most 128"
    parser.add_number("--image-size", what)
    parser.add_number("--max-images", "measure activations on at most N images", default=8)
    parser.add_resizing_by_alpha()


def _wrapped(name: str, what: str) -> str:
    """Returns a format's entry in the help, in lines of 104 characters."""
    return textwrap.fill(f"{name}: {what}", width=104, initial_indent="  ", subsequent_indent="    ")


def _export(
    *,
    model: str,
    format: str,
    family: str | None,
    dtype: str,
    out: Path,
    overwrite: bool,
    norm_num_groups: int | None,
    half_safe: bool,
    data: str | None,
    image_size: int | None,
    max_images: int,
    alpha: bool,
    **reading: Any,
) -> None:
    if format == "comfyui" and family is None:
        raise ValueError(f"--format comfyui needs --family, one of {', '.join(FAMILIES)}")
    if half_safe != (data is not None):
        problem = "--half-safe needs --data IMAGES" if half_safe else "--data is for --half-safe"
        raise ValueError(f"{problem}: activations are measured on these images")
    if alpha and not half_safe:
        raise ValueError("--alpha is for --half-safe: without it, no images are read")

    from safetensors import SafetensorError

    from latentae.data import DataSelection
    from latentae.export import export_autoencoder
    from latentae.export.rescaling import read_images
    from latentae.models import load_autoencoder

    known: dict[str, Any] = {} if norm_num_groups is None else {"norm_num_groups": norm_num_groups}
    notes = []
    try:
        autoencoder: Any = load_autoencoder(model, **known)
        if family is not None and not autoencoder.has_known_scale:
            autoencoder = load_autoencoder(model, family=family, **known)
            notes.append(f"{model} does not record its scale; {family}'s was taken")
        images = None
        if data is not None:
            selection = DataSelection(data, **reading)
            sizes: Any = {"image_size": image_size, "max_images": max_images}
            images = read_images(autoencoder, selection, alpha=alpha, **sizes)
        report = export_autoencoder(
            autoencoder,
            out,
            format=format,
            family=family,
            dtype=dtype,
            overwrite=overwrite,
            half_safe_images=images,
        )
    except (ValueError, OSError, SafetensorError) as error:  # SafetensorError: the disk is full
        raise CommandError(" ".join(str(error).split()), 2) from error

    for note in (*notes, *report.remarks):
        write(f"note: {note}")
    errors = ", ".join(f"{name} {error:.1e}" for name, error in report.errors.items())
    largest = f"max error {report.max_error:.1e} of the largest value"
    write(
        f"reopened and compared with the model: {largest} ({errors}; {dtype} allows {report.tolerance:.0e})"
    )
    write(f"wrote {report.path} ({report.format}, {dtype}: {', '.join(report.files)})")
    write(f"to load it: {report.load_hint}")


EXPORT = Command(
    "export",
    _export,
    _export_options,
    "Writes a model in a format that other programs read. The export is reopened and compared with the\n"
    "model before it takes its place. A format that cannot hold the model is refused before anything is\n"
    "written; the message names the formats that can. --half-safe rescales weights by powers of two where\n"
    "activations exceed float16's range on the images of --data, which would give NaN; images stay the\n"
    "same, and the export is also tried in float16. The formats:\n"
    + "".join(f"\n{_wrapped(name, what)}" for name, what in FORMATS.items()),
    example="latentae export run_kl_f8 --format comfyui --family sd1 --dtype fp16 --out vae.safetensors",
    less_memory="close other programs, or choose a smaller --image-size or --max-images of --half-safe",
)


def _reconstruct_options(parser: CommandParser) -> None:
    what = "image, .npy file, or folder of them"
    parser.add_argument("images", type=Path, metavar="IMAGE_OR_FOLDER", help=what)
    parser.add_argument("out", type=Path, metavar="OUT", help="PNG file, or folder")
    parser.add_model("--model", required=True)
    parser.add_number("--max-side", "shrink longer images to N pixels first; omitted: never")
    parser.add_switch("--tile", "work in strips: less memory for large images, with the same result")
    parser.add_switch("--alpha", "images are RGBA: show them on a checkerboard")
    parser.add_overwrite("existing images")
    add_decoding(parser.add_argument_group("reading the images, as data.* in training"))


def _reconstruct(*, images: Path, out: Path, model: str, overwrite: bool, tile: bool, **options: Any) -> None:
    import torch

    from latentae.data.arrays import check_value_range
    from latentae.evaluation.reconstruct import plan_jobs, run_jobs
    from latentae.models import load_autoencoder

    jobs = plan_jobs(images, out, overwrite)
    check_value_range(options["value_range"])
    autoencoder = load_autoencoder(model, torch_dtype=torch.float32)
    if tile:
        autoencoder.enable_tiling()
    autoencoder.to("cuda" if torch.cuda.is_available() else "cpu")

    # Print each image's result as soon as it is known, and the mean at the end.
    ratios: list[float] = []
    lack_of_memory = None
    for comparison in run_jobs(autoencoder, jobs, **options):
        if comparison.skipped:
            say(f"skipped {comparison.job.name}: {comparison.skipped}")
            lack_of_memory = lack_of_memory or comparison.lack_of_memory
            continue
        ratios.append(comparison.psnr)
        height, width = comparison.size
        numbers = f"{width}x{height} pixels, PSNR {comparison.psnr:.2f} dB"
        write(f"{comparison.job.name}: {numbers}, {comparison.job.picture}")
    if not ratios and lack_of_memory is not None:
        raise lack_of_memory
    if not ratios:
        raise ValueError(f"none of {len(jobs)} image(s) could be reconstructed")
    skipped = f", {len(jobs) - len(ratios)} skipped" if len(ratios) < len(jobs) else ""
    write(f"mean of {len(ratios)} image(s): PSNR {sum(ratios) / len(ratios):.2f} dB{skipped}")


RECONSTRUCT = Command(
    "reconstruct",
    _reconstruct,
    _reconstruct_options,
    "Writes each image beside its reconstruction, the image on the left, as a PNG of full size. Prints the\n"
    "PSNR of each and the mean. Images are converted to the model's channels (one channel: grey); .npy\n"
    "arrays must have as many channels as the model. Of more than three channels the first three are\n"
    "shown, unless --alpha is given. Images that cannot be read or are too small are named and skipped.",
    example="latentae reconstruct photo.jpg side_by_side.png --model run",
    interrupted="the images written so far are complete",
    less_memory="add --tile, or shrink the images by --max-side",
)
