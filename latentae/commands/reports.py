"""The commands that write or read reports: inspect, evaluate, compare and probe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from latentae.commands.options import SEVERAL_DEVICES, Command, CommandParser, open_device, write
from latentae.console import say


def _inspect_options(parser: CommandParser) -> None:
    parser.add_model()
    parser.add_family()
    parser.add_data(split=None)
    parser.add_out("the figures")
    parser.add_number("--image-size", "side of the crops in pixels; omitted: the model's sample_size")
    parser.add_number("--max-images", "inspect at most N images, evenly spread", default=256)
    parser.add_batch_size()
    parser.add_workers()
    parser.add_seed("posterior samples and decoded noise")
    parser.add_switch("--alpha", "images are RGBA: show them on a checkerboard")
    parser.add_overwrite("an existing inspection")


def _inspect(*, out: Path, **options: Any) -> None:
    from latentae.latents.inspection.inspect import PAGE, inspect

    with open_device() as device:
        sections = inspect(out=out, device=device, say=say, **options)
    for section in sections:
        for remark in section.remarks:
            write(f"{section.name}: {remark}")
    write(f"figures: {out / PAGE}")


INSPECT = Command(
    "inspect",
    _inspect,
    _inspect_options,
    "Shows the structure of a model's latents: histograms and correlations of the channels, power spectra\n"
    "of latents and images, interpolations, decoded noise, changes of one channel at a time, and the codes\n"
    "of a VQ model. Writes inspect.html, inspect.json, and one PNG per figure. Runs in one process.",
    example="latentae inspect run --data path/to/images --out latent_space",
    interrupted="nothing is written",
    less_memory="choose a smaller --batch-size, --image-size or --max-images",
)


def _evaluate_options(parser: CommandParser) -> None:
    parser.add_models()
    what = "model that a denoiser was trained on: tell whether the denoiser still fits the other models"
    parser.add_argument("--teacher", metavar="[NAME=]MODEL", help=what)
    parser.add_families()
    parser.add_data(split=None)
    parser.add_out("the report")
    what = "preparation of the images, see below"
    parser.add_argument("--protocol", default="imagenet-256", metavar="NAME", help=what)
    parser.add_number("--limit", "measure N images, evenly spread; omitted: all")
    parser.add_batch_size()
    parser.add_workers()
    parser.add_precision("models")
    parser.add_number("--cycle-images", "images that are encoded repeatedly, to measure drift", 32, least=0)
    parser.add_inception("rFID, KID, precision and recall")
    parser.add_weights()
    what = "leave out all distances between distributions: rFID, FD-VGG16, CLIP-MMD and so on"
    parser.add_switch("--no-features", what, dest="features", action="store_false")
    parser.add_switch("--ifid", "also decode points between latents, and measure their FID")
    what = "show these models together and compare them with each other; can be repeated"
    group = "NAME=MODEL,MODEL"
    parser.add_argument("--group", dest="groups", action="append", default=[], metavar=group, help=what)
    parser.add_switch("--alpha", "images are RGBA: measure composites over black and white")
    parser.add_overwrite("an existing report")


def _evaluate(*, batch_size: int, num_workers: int, cycle_images: int, **options: Any) -> None:
    from latentae.evaluation.evaluate import Request, evaluate
    from latentae.evaluation.measuring import Settings
    from latentae.report.tables import caveats, render_fit_terminal, render_terminal

    request = Request(settings=Settings(batch_size, num_workers, cycle_images), **options)
    request.check()  # before the processes join, which takes seconds
    with open_device() as device:
        results = evaluate(request, device, say)
    for remark in caveats(results):
        write(f"note: {remark}")
    write(f"\n{results.protocol['images']} images of {request.data}, {request.protocol}")
    parts = [render_terminal(results), render_fit_terminal(results), f"report: {request.out / 'report.html'}"]
    write("\n" + "\n\n".join(filter(None, parts)))


EVALUATE = Command(
    "evaluate",
    _evaluate,
    _evaluate_options,
    "Measures how well models reconstruct the same images, and writes results.json, results.md and\n"
    "report.html. An interrupted evaluation continues where it stopped.\n"
    f"{SEVERAL_DEVICES};\nthe numbers do not depend on the number of processes.",
    example="latentae evaluate run sdxl=stabilityai/sdxl-vae --data path/to/images --out report",
    epilog="protocols:\n"
    "  imagenet-256  shorter side 256 pixels, central square; most published numbers use it\n"
    "  imagenet-512  shorter side 512 pixels, central square\n"
    "  native        whole images at their own size\n"
    "  resize-N      shorter side N pixels, central square\n"
    "  crop-N        central square of N pixels, not resized\n\n"
    "rFID, KID, precision, recall and iFID need torch-fidelity's Inception weights: from its cache, a\n"
    "download, or --inception. FD-DINOv2 and CLIP-MMD need weights of these networks: from the caches of\n"
    "torch and of the hub, or --weights. Metrics whose weights are missing are left out.",
    interrupted="the same command continues from here",
    less_memory="choose a smaller --batch-size, or smaller images by --protocol; what is measured is kept",
)


def _compare_options(parser: CommandParser) -> None:
    parser.add_argument("first", type=Path, metavar="REPORT", help="folder of a report, or its results.json")
    parser.add_argument("second", type=Path, metavar="REPORT", help="the report to compare it with")


def _compare(*, first: Path, second: Path) -> None:
    from latentae.evaluation.compare import render
    from latentae.report.results import Results

    write(render(Results.load(first), Results.load(second)))


COMPARE = Command(
    "compare",
    _compare,
    _compare_options,
    "Shows how the protocols of two reports of `latentae evaluate` differ (images, their preparation,\n"
    "weights, code), and lists the metrics of the models that are in both, side by side.",
    example="latentae compare report_old report_new",
    less_memory="close other programs",
)


def _probe_options(parser: CommandParser) -> None:
    parser.add_models()
    parser.add_families()
    parser.add_data(split="train")
    parser.add_out("the report")
    parser.add_number("--steps", "optimizer steps for each model", default=2000)
    parser.add_batch_size(default=32)
    parser.add_number("--image-size", "side of the images in pixels", default=64)
    parser.add_seed("all random numbers")
    parser.add_number("--samples", "images to generate and measure, for each model", default=512, least=2)
    parser.add_number("--sampling-steps", "steps of the sampler", default=25)
    what = "scale of classifier-free guidance, for labelled data; 1 turns it off"
    parser.add_argument("--guidance-scale", type=float, default=1.0, metavar="W", help=what)
    parser.add_switch("--unconditional", "ignore the labels of the data")
    parser.add_switch("--no-flips", "do not mirror images in training", dest="flips", action="store_false")
    what = "images are RGBA: show them on a checkerboard, and measure composites"
    parser.add_switch("--alpha", what)
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="R", help="highest learning rate"
    )
    parser.add_number("--width", "channels per token, a multiple of 32", default=192)
    parser.add_number("--depth", "transformer blocks", default=6)
    parser.add_number(
        "--largest-side",
        "largest number of tokens along a side; 8 is several times faster than 16",
        default=16,
    )
    what = "compare generated images with at most N training images"
    parser.add_number("--reference-images", what, default=10_000, least=4)
    parser.add_inception("gFID")
    parser.add_workers()


def _probe(*, width: int, depth: int, largest_side: int, **options: Any) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a probe runs in one process: start it without a launcher")

    from latentae.probe.denoiser import DenoiserSize
    from latentae.probe.probe import probe
    from latentae.probe.request import ProbeRequest
    from latentae.report.tables import render_terminal

    request = ProbeRequest(size=DenoiserSize(width, depth, largest_side), **options)
    request.check()
    with open_device() as device:
        results = probe(request, device, say)
    for remark in results.remarks:
        write(f"note: {remark}")
    write(f"\n{render_terminal(results.generation_table())}\n\nreport: {request.out / 'probe.html'}")


PROBE = Command(
    "probe",
    _probe,
    _probe_options,
    "Trains the same small denoiser (a DiT, by rectified flow) on each model's latents, with the same\n"
    "number of steps and tokens, and samples through a diffusers pipeline. Writes probe.html, probe.md and\n"
    "results.json: samples, distances to the data, nearest training images, interpolations, losses,\n"
    "reconstruction. DiffusionPipeline.from_pretrained loads FOLDER/MODEL/pipeline. An interrupted probe\n"
    "continues where it stopped. Runs in one process.",
    example="latentae probe run_a run_b --data path/to/images --out probe",
    interrupted="the same command continues from a state that is at most a minute old",
    less_memory="choose a smaller --batch-size, --image-size, --width or --largest-side, and another --out",
)
