"""Measures public autoencoders and your own on one data set, and shows published numbers next to them.

Writes a report and prints a table. A MODEL is a name of `--list`, or what `latentae evaluate` takes;
NAME=PATH measures the weights at a path beside the numbers published for NAME. Without any MODEL all public
models that the hub holds are measured. Models that cannot be opened (a licence that was not accepted) are
left out with a message. With `--stand-ins` tiny random models of the same classes take the place of public
ones, so that the script can be tried without a hub. Under torchrun or `accelerate launch` several devices
share the work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import benchmark_parser, print_head, print_row
from stand_ins import save_stand_in

from latentae import distributed
from latentae.evaluation.evaluate import Request, evaluate
from latentae.evaluation.measuring import Settings
from latentae.evaluation.models import name_models
from latentae.models import load_autoencoder
from latentae.report.results import Results, number
from latentae.report.tables import caveats, render_markdown

_IMAGENET = "ImageNet validation, 50,000 images at 256"
_COCO = "COCO 2017 validation, 5,000 images at 256"
_SHOWN = ("rfid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips")
_HEAD = ("rFID", "PSNR", "SSIM", "LPIPS alex", "LPIPS vgg", "LPIPS of which?", "data", "remark")
_NO_HUB = "the hub cannot be reached"  # part of the message of load_autoencoder


@dataclass(frozen=True)
class Published:
    """Numbers that others measured.

    Attributes:
        numbers: metric to value; ``lpips`` if the network is not stated.
        data: the data set.
        remark: where the numbers stand, and known differences from how this script measures.
    """

    numbers: dict[str, float]
    data: str
    remark: str


@dataclass(frozen=True)
class Public:
    """A public model and the numbers published for it.

    Attributes:
        class_name: diffusers' class that holds it; "" if there is none.
        path: its repository on the hub; "" if none holds it in a form that `load_autoencoder` opens.
        published: what others measured, as far as a source was found.
    """

    class_name: str
    path: str
    published: Sequence[Published] = ()


_UNSTATED = "crop, rounding and LPIPS network not stated"
_CARD = "model card, which calls its LPIPS PSIM; crop and rounding not stated"
_COSMOS = (
    "model card of Cosmos Tokenizer; its PSNR lies 9 dB above that of other sources, so it is another PSNR"
)
_TAMING = "arXiv 2012.09841; the project's README has {}, by torch-fidelity; crop and rounding not stated"

PUBLIC = {
    "sd-vae-ft-mse": Public(
        "AutoencoderKL",
        "stabilityai/sd-vae-ft-mse",
        (
            Published({"rfid": 0.692, "psnr": 26.91, "ssim": 0.772, "lpips": 0.130}, _IMAGENET, _UNSTATED),
            Published({"rfid": 4.70, "psnr": 24.5, "ssim": 0.71, "lpips": 0.92}, _COCO, _CARD),
        ),
    ),
    "sdxl": Public(
        "AutoencoderKL",
        "stabilityai/sdxl-vae",
        (
            Published({"rfid": 0.665, "psnr": 27.38, "ssim": 0.794, "lpips": 0.122}, _IMAGENET, _UNSTATED),
            Published({"rfid": 4.42, "psnr": 24.7, "ssim": 0.73, "lpips": 0.88}, _COCO, _CARD),
        ),
    ),
    "sd3": Public(
        "AutoencoderKL",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        (
            Published(
                {"rfid": 0.0257, "psnr": 30.3231, "lpips": 0.0132},
                "not stated",
                f"card of AuraDiffusion/16ch-vae; {_UNSTATED}",
            ),
        ),
    ),
    "flux1": Public(
        "AutoencoderKL",
        "black-forest-labs/FLUX.1-schnell",
        (Published({"rfid": 0.165, "psnr": 32.87, "ssim": 0.924, "lpips": 0.045}, _IMAGENET, _UNSTATED),),
    ),
    "flux2": Public(
        "AutoencoderKLFlux2",
        "black-forest-labs/FLUX.2-dev",
        (
            Published(
                {"psnr": 36.28},
                "2,000 images, not stated which",
                "card of data-archetype/full_capacitor; sizes, crop and rounding not stated",
            ),
        ),
    ),
    "dc-ae-f32": Public("AutoencoderDC", "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"),
    "dc-ae-f64": Public(
        "AutoencoderDC",
        "mit-han-lab/dc-ae-f64c128-in-1.0-diffusers",
        (
            Published(
                {"rfid": 0.217, "psnr": 26.15, "ssim": 0.710, "lpips": 0.080},
                "ImageNet validation, 50,000 images at 512",
                f"512 pixels a side; {_UNSTATED}",
            ),
        ),
    ),
    "rae-dinov2-b": Public("AutoencoderRAE", "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08"),
    "qwen-image": Public(
        "AutoencoderKLQwenImage",
        "Qwen/Qwen-Image",
        (
            Published(
                {"psnr": 33.42},
                "general images, not stated which",
                "technical report (arXiv 2508.02324) as an article quotes it; crop and rounding not stated",
            ),
        ),
    ),
    "hunyuan-image-2.1": Public(
        "AutoencoderKLHunyuanImage", "hunyuanvideo-community/HunyuanImage-2.1-Diffusers"
    ),
    "wan-2.1": Public("AutoencoderKLWan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "wan-2.2": Public("AutoencoderKLWan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
    "taesd": Public("AutoencoderTiny", "madebyollin/taesd"),
    "taef2": Public("AutoencoderTiny", "madebyollin/taef2"),
    "ldm-vq-f4": Public("VQModel", "CompVis/ldm-super-resolution-4x-openimages"),
    "amused-vq-f16": Public("VQModel", "amused/amused-256"),
    "taming-vqgan-f16-1024": Public("", "", (Published({"rfid": 7.94}, _IMAGENET, _TAMING.format("8.0")),)),
    "taming-vqgan-f16-16384": Public("", "", (Published({"rfid": 4.98}, _IMAGENET, _TAMING.format("4.9")),)),
    "llamagen-vq-f8": Public(
        "",
        "",
        (
            Published({"rfid": 0.59}, _IMAGENET, f"arXiv 2406.06525; {_UNSTATED}"),
            Published({"rfid": 1.403, "psnr": 30.28, "ssim": 0.498}, "ImageNet validation, 50,000", _COSMOS),
        ),
    ),
    "llamagen-vq-f16": Public(
        "",
        "",
        (
            Published({"rfid": 2.19, "psnr": 20.79}, _IMAGENET, f"arXiv 2406.06525; {_UNSTATED}"),
            Published({"rfid": 1.657, "psnr": 29.81, "ssim": 0.448}, "ImageNet validation, 50,000", _COSMOS),
        ),
    ),
}


def main() -> int:
    arguments = _parse()
    if arguments.list:
        list_models()
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder, distributed.init_from_environment() as device:
            models = _available(_wanted(arguments, Path(folder)), arguments.stand_ins)
            request = Request(
                models=[f"{name}={path}" for name, (path, _) in models.items()],
                data=arguments.data,
                out=arguments.out,
                split=arguments.split,
                protocol=arguments.protocol,
                limit=arguments.limit,
                inception=arguments.inception,
                features=arguments.features,
                overwrite=arguments.overwrite,
                settings=Settings(arguments.batch_size, arguments.num_workers),
            )
            opened = dict(models.values())
            stand_ins = [name for name, (path, _) in models.items() if Path(path).parent == Path(folder)]
            results = evaluate(request, device, _say, opened.__getitem__)
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(render(results, stand_ins))
    return 0


def list_models() -> None:
    """Prints the public models and the numbers published for them."""
    print_head("model", "class", "hub", *_HEAD, numbers=False)
    for name, public in PUBLIC.items():
        first = (name, public.class_name or "-", public.path or "-")
        for published in public.published or (Published({}, "-", "no number with a source was found"),):
            print_row(*first, *_cells(published.numbers), published.data, published.remark)


def render(results: Results, stand_ins: Sequence[str] = ()) -> str:
    """Returns measured and published numbers, their differences, and all metrics, as Markdown.

    Args:
        results: of the evaluation.
        stand_ins: the models that random ones stand in for.
    """
    protocol = results.protocol
    data = protocol["data"]
    name = "a folder of photographs" if Path(data["name"]).exists() else f"{data['name']} ({data['split']})"
    here = f"{name}, {protocol['images']:,} images, {protocol['name']}"
    lines = [
        f"| model | numbers | {' | '.join(_HEAD)} |",
        f"| --- | --- |{' ---: |' * len(_SHOWN)} --- | --- |",
    ]
    for model, metrics in results.models.items():
        kind = "of a random stand-in" if model in stand_ins else "of this run"
        cells = [number(metrics[name].value, name) if name in metrics else "-" for name in _SHOWN]
        lines.append(f"| {model} | {kind} | {' | '.join(cells)} | {here} | |")
        for published in PUBLIC[model].published if model in PUBLIC else ():
            remark = _difference(published, results)
            cells = _cells(published.numbers)
            lines.append(f"| | published | {' | '.join(cells)} | {published.data} | {remark} |")
    home = str(Path.home())  # not to be published
    lines += [f"\n{remark.replace(home, '~')}." for remark in caveats(results)]
    return "\n".join([*lines, "\nAll metrics:\n", render_markdown(results)])


def _cells(numbers: dict[str, float]) -> list[str]:
    return [f"{numbers[name]:g}" if name in numbers else "-" for name in _SHOWN]


def _difference(published: Published, results: Results) -> str:
    images = results.protocol["images"]
    fewer = [f"{images:,} images here, and rFID falls with their number"] if images < 5000 else []
    return "; ".join([published.remark, *fewer])


def _wanted(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Returns name to path of the models to measure; stand-ins are written into the folder.

    Raises:
        ValueError: a public model that no repository of the hub holds, or two models of the same name.
    """
    names = arguments.models or [name for name, public in PUBLIC.items() if public.path]
    wanted = []
    for model in names:
        public = PUBLIC.get(model)
        if public is None:
            wanted.append(model)
        elif not public.path:
            raise ValueError(f"{model} is not on the hub in a form that can be opened: give {model}=PATH")
        elif arguments.stand_ins:
            save_stand_in(public.class_name, folder / model, seed=list(PUBLIC).index(model))
            wanted.append(f"{model}={folder / model}")
        else:
            wanted.append(f"{model}={public.path}")
    return name_models(wanted)


def _available(wanted: dict[str, str], has_stand_ins: bool) -> dict[str, tuple[str, Any]]:
    """Returns name to path and model for those that can be opened, and reports why others cannot.

    Once the hub cannot be reached, no other model is looked for there: each would take its time to fail.

    Raises:
        ValueError: none can be opened; the message names the remedy.
    """
    models: dict[str, tuple[str, Any]] = {}
    reasons: dict[str, str] = {}
    has_hub = True
    with distributed.main_first():  # the first rank downloads
        for name, path in wanted.items():
            if not has_hub and not Path(path).exists():
                reasons[name] = _NO_HUB
                continue
            try:
                models[name] = (path, load_autoencoder(path, torch_dtype=torch.float32))
            except (ValueError, OSError) as error:
                reasons[name] = " ".join(str(error).split())
                has_hub = has_hub and _NO_HUB not in reasons[name]
    if not models:
        raise ValueError(_explain(reasons, has_hub, has_stand_ins))
    for name, reason in reasons.items():
        _say(f"{name} left out: {reason}")
    return models


def _explain(reasons: dict[str, str], has_hub: bool, has_stand_ins: bool) -> str:
    """Returns why no model could be opened, and the remedy."""
    if has_hub:
        name, reason = next(iter(reasons.items()))
        return f"none of {len(reasons)} model(s) can be opened, such as {name}: {reason}"
    remedies = ["connect this machine", "give models as NAME=PATH"]
    if not has_stand_ins:
        remedies.append("try the script with tiny random models by --stand-ins")
    return f"none of {len(reasons)} model(s) can be opened, since {_NO_HUB}: {', or '.join(remedies)}"


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a name of --list, a path, or NAME=PATH")
    parser.add_argument("--list", action="store_true", help="print the public models and published numbers")
    parser.add_argument(
        "--stand-ins", action="store_true", help="tiny random models in the place of public ones"
    )
    parser.add_argument("--data", help="a folder of images, or a dataset on the hub")
    parser.add_argument("--out", type=Path, help="folder of the report")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--protocol", default="imagenet-256", help="size and crop of the images")
    parser.add_argument("--limit", type=int, help="most images")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument("--num-workers", type=int, default=0, help="decoding processes")
    parser.add_argument("--inception", type=Path, help="file of FID's Inception weights")
    parser.add_argument(
        "--no-features", dest="features", action="store_false", help="leave out rFID, FD-VGG16 and the like"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    arguments = parser.parse_args()
    if not arguments.list and (arguments.data is None or arguments.out is None):
        parser.error("--data and --out are needed, except with --list")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
