"""The measurements of benchmarks/gpu.py besides training: inference, the look-up, evaluation, the loader."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench_data import collect_images, images_per_second
from bench_lookup import lookup_methods
from gpu_steps import Cell, Plan, Row, peak_with_weights, restored
from measuring import in_turns, peak_memory, seconds
from torch import Tensor

from latentae import KLVAE, Flux2VAE
from latentae.data import ImageDataset, RandomCrop, open_sources, training_loader
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.models import NamedModel
from latentae.evaluation.networks import open_measures
from latentae.models.lean import blocks as lean_blocks

_LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
_MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    # SDXL's VAE has the layers of Stable Diffusion's.
    "SD and SDXL": (KLVAE, {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **_LEVELS}),
    "FLUX.2": (Flux2VAE, {}),
}
_TINY: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    **_LEVELS,
}


def _build(plan: Plan, name: str) -> Any:
    """Returns a model with random weights, in eval mode; a tiny one of its class for a rehearsal."""
    make, arguments = _MODELS[name]
    return make(**_TINY if plan.tiny else arguments).eval()


# --- decoding and encoding


def inference_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells of decoding and encoding one image, by model and size; compilers have their own."""
    sizes = (32, 64) if plan.tiny else (512, 1024, 2048)
    # The smaller sizes of all come first, and the reference: FLUX.2's decoder at 1024 pixels.
    for size in sizes:
        for model in _MODELS:
            for direction in ("decode", "encode"):
                name = f"{model} {direction} {size}"
                yield name, lambda m=model, d=direction, s=size: _inference(plan, m, d, s, _eager)
    for size in sizes[:2]:
        for model in _MODELS:
            name = f"{model} decode {size} compiled"
            yield name, lambda m=model, s=size: _inference(plan, m, "decode", s, _compiled)


def _eager(model: Any, plan: Plan, size: int) -> dict[str, Any]:
    """Returns the model and its variants. Exact tiling may hold three of the largest feature maps."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    rewritten = copy.deepcopy(model)
    rewritten.optimize()
    tiled = copy.deepcopy(model)
    tiled.enable_tiling(memory=2**22 if plan.tiny else 3 * 128 * size**2 * 2 + 2**29)
    return {"stock": model, "channels_last": last, "optimize()": rewritten, "exact tiling": tiled}


def _compiled(model: Any, plan: Plan, size: int) -> dict[str, Any]:
    """Returns the model and two that are compiled for this size."""
    backend = "inductor" if plan.device.type == "cuda" else "aot_eager"  # which needs no C++ compiler
    variants = {"stock": model}
    for name, order in (
        ("compiled", torch.contiguous_format),
        ("compiled, channels_last", torch.channels_last),
    ):
        variants[name] = copy.deepcopy(model).to(memory_format=order)
        variants[name].decoder.compile(backend=backend, dynamic=False)
    return variants


def _inference(
    plan: Plan, name: str, direction: str, size: int, variants_of: Callable[[Any, Plan, int], dict[str, Any]]
) -> list[Row]:
    torch.manual_seed(0)
    with restored(plan.device), _rewrites_everywhere():
        model = _build(plan, name)
        # ModelMixin's own warns of modules to keep in float32; there are none.
        torch.nn.Module.to(model, plan.device, torch.bfloat16)
        model.requires_grad_(False)
        if direction == "decode":
            shape = (model.latents_channels, size // 8, size // 8)
            inputs = torch.randn(1, *shape).to(plan.device, torch.bfloat16)
        else:
            inputs = (torch.rand(1, 3, size, size) * 2 - 1).to(plan.device, torch.bfloat16)
        outputs: dict[str, Tensor] = {}
        calls = {
            which: _call(variant, direction, inputs, which, outputs)
            for which, variant in variants_of(model, plan, size).items()
        }
        spent = in_turns(calls, plan.rounds, plan.device)
        peaks = {which: peak_with_weights(call, plan.device) for which, call in calls.items()}
    exact = outputs["stock"].float()
    rows: list[Row] = []
    for which, times in spent.items():
        error = (outputs[which].float() - exact).norm() / exact.norm()
        middle = statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(spent["stock"], times, strict=True))
        rows.append(
            {
                **{"model": name, "pass": direction, "px": size, "variant": which},
                **{"ms": round(1e3 * middle, 2), "stock / it": round(ratio, 2)},
                **{"peak MiB": round(peaks[which]), "difference": f"{float(error):.1e}"},
            }
        )
    return rows


def _call(
    model: Any, direction: str, inputs: Tensor, name: str, outputs: dict[str, Tensor]
) -> Callable[[], None]:
    weight = model.decoder.conv_in.weight
    is_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    given = inputs.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)

    @torch.no_grad()
    def call() -> None:
        result = model.decode(given).sample if direction == "decode" else model.encode(given).latents
        outputs[name] = result

    return call


@contextmanager
def _rewrites_everywhere() -> Iterator[None]:
    """In its body `optimize()` rewrites blocks on CUDA, too."""
    before, lean_blocks._DEVICES = lean_blocks._DEVICES, (*lean_blocks._DEVICES, "cuda")
    try:
        yield
    finally:
        lean_blocks._DEVICES = before


# --- the look-up


def lookup_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells of the look-up, one for each number of codes and length of a code."""
    counts = (64, 256) if plan.tiny else (1024, 16384, 65536, 262144)
    for count in counts:
        for dim in (8, 64):
            yield f"{count} codes of {dim}", lambda c=count, d=dim: _lookup(plan, c, d)


@torch.no_grad()
def _lookup(plan: Plan, count: int, dim: int) -> list[Row]:
    rows = 256 if plan.tiny else 16384
    latents, codes = (torch.randn(number, dim).to(plan.device) for number in (rows, count))
    methods = lookup_methods(latents, codes)
    calls = {name: lambda method=method: method(latents, codes) for name, method in methods.items()}
    spent = in_turns(calls, plan.rounds, plan.device)
    return [
        {
            **{"codes": count, "length": dim, "latents": rows, "method": name},
            **{"ms": round(1e3 * statistics.median(spent[name]), 3)},
            **{"peak MiB": round(peak_memory(call, plan.device), 1)},
        }
        for name, call in calls.items()
    ]


# --- evaluation and data


def evaluation_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells of `latentae evaluate` on photographs, with LPIPS, and with features too."""
    for name, networks in {"pixels and LPIPS": (), "and VGG16's features": ("vgg16",)}.items():
        yield name, lambda name=name, networks=networks: _evaluate(plan, name, networks)


def _evaluate(plan: Plan, name: str, networks: tuple[str, ...]) -> list[Row]:
    count, batch = (4, 2) if plan.tiny else (512, 32)
    with (
        restored(plan.device),
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"LATENTAE_CACHE": f"{folder}/cache"}),
    ):
        collect_images(None, count, Path(folder, "images"))
        torch.manual_seed(0)
        named = [NamedModel("kl", "random weights", _build(plan, "SD and SDXL").to(plan.device))]
        source = open_sources(f"{folder}/images").train
        blocks = ImageBlocks(source, PROTOCOLS["native"], 3, count)
        measures = open_measures(plan.device, features=bool(networks), networks=networks)
        workers = 0 if plan.tiny else 4
        settings = Settings(batch, cycle_images=0, num_workers=workers)
        evaluation = Evaluation(blocks, measures, settings, Path(folder, "work"), "", plan.device)
        spent = seconds(lambda: evaluation.measure(named), plan.device)
        images = len(blocks.indices)
    return [{"measured": name, "px": 256, "images": images, "images/s": round(images / spent, 2)}]


def loader_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells of the data loader: JPEG files to batches, by the number of workers."""
    for workers in (0, 1) if plan.tiny else (0, 1, 2, 4, 8):
        yield f"{workers} workers", lambda workers=workers: _load(plan, workers)


def _load(plan: Plan, workers: int) -> list[Row]:
    count, span, side = (20, 0.5, 128) if plan.tiny else (1200, 5.0, 256)
    with tempfile.TemporaryDirectory() as folder:
        collect_images(None, count, Path(folder, "images"))
        source = open_sources(f"{folder}/images").train
        loader = training_loader(
            ImageDataset(source, RandomCrop(side, flip=True), 3),
            batch_size=4 if plan.tiny else 12,
            num_workers=workers,
            pin_memory=plan.device.type == "cuda",
        )
        speed = images_per_second(iter(loader), 4 if plan.tiny else 12, span, time.perf_counter)
    return [
        {
            "workers": workers,
            "px": side,
            "images/s": round(speed, 1),
            "a worker": round(speed / max(1, workers), 1),
        }
    ]
