"""The measurements of benchmarks/gpu.py on the training step: speed, memory, other programs', a profile.

A step of ours is the trainer's whole optimizer step: forward, losses, backward, clipping, fused AdamW, the
moving average of the weights, and the counts for the log. A peer's is its step of peers.py and two fused
AdamWs, without a moving average.
"""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import AcceleratorState
from bench_step import with_perceptual
from measuring import FlopCount, convolution_rate, peak_memory, seconds
from peers import diffusers_kl_steps, diffusers_vqgan_steps, packaged_lpips, taming_step, with_taming_blocks

from latentae import build
from latentae.config import RunConfig, load_config
from latentae.training.log import Meter
from latentae.training.optimizers import adamw
from latentae.training.speed import TorchSettings, set_float32_precision
from latentae.training.trainer import Trainer

Row = dict[str, Any]
Cell = tuple[str, Callable[[], list[Row]]]


@dataclass(frozen=True)
class Plan:
    """The device of the measurements, and their size.

    Attributes:
        device: where.
        tiny: models and images of a rehearsal, on which numbers mean nothing.
        rounds: measured rounds; medians are shown.
    """

    device: torch.device
    tiny: bool
    rounds: int


_FAMILIES = {"kl_f8": "kl_vae", "vqgan_f16": "vqgan"}
_PRECISIONS = {
    "bf16": ["mixed_precision=bf16", "float32_precision=high"],
    "TF32": ["mixed_precision=no", "float32_precision=high"],
    "float32": ["mixed_precision=no", "float32_precision=highest"],
}
_ADVERSARIAL = ["loss.adversarial.start_step=0", "loss.adversarial.discriminator_warmup_steps=0"]
_ALONE = [
    *_ADVERSARIAL,
    "gradient_accumulation_steps=1",
    "cpu_threads=1",
    "data.num_workers=0",
    "trackers=[]",
    "data.name=photos",
]
_TINY = {
    "kl_f8": ["model.block_out_channels=[8,16]", "model.norm_num_groups=4", "model.layers_per_block=1"],
    "vqgan_f16": [
        *("model.block_out_channels=[8,16]", "model.norm_num_groups=4", "model.layers_per_block=1"),
        *("model.attention_levels=[false,true]", "model.latent_channels=4"),
        "model.quantizer={type: vector, num_codes: 16, code_dim: 4, init: uniform, revive_after: 1000}",
    ],
}
# The codebook does not start from data, which would encode many batches before the first step.
_WHOLE = {"kl_f8": [], "vqgan_f16": ["model.quantizer.init=uniform"]}
_TINY_BOTH = ["data.image_size=32", "discriminator.base_channels=8", "discriminator.num_layers=2"]
_TINY_BOTH += ["loss.perceptual.trunk=alex"]
_VARIANTS = {
    "performance=off": ["performance=off"],
    "performance=auto": ["performance=auto"],
    "performance=memory": ["performance=memory"],
    "off, channels_last": ["performance=off", "channels_last=true"],
    "off, compile": ["performance=off", "compile=true"],
    "off, gradient checkpointing": ["performance=off"],
    "auto, channels_last": ["performance=auto", "channels_last=true"],
    "memory, channels_last": ["performance=memory", "channels_last=true"],
    "auto, channels_last, compile": ["performance=auto", "channels_last=true", "compile=true"],
    "memory, channels_last, compile": ["performance=memory", "channels_last=true", "compile=true"],
}
_CHECKPOINTED = "off, gradient checkpointing"
_AT_THEIR_LARGEST = ("performance=off", "performance=auto", "performance=memory", _CHECKPOINTED)
_PEERS = {"kl_f8": ("diffusers",), "vqgan_f16": ("taming", "diffusers")}


# --- cells


def rate_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells that measure the convolutions' peak, the yardstick of the steps."""
    formats = {
        "bf16": (torch.bfloat16, "highest"),
        "float16": (torch.float16, "highest"),
        "TF32": (torch.float32, "high"),
        "float32": (torch.float32, "highest"),
    }
    if plan.device.type == "cpu":
        del formats["float16"]  # a CPU may need minutes
    for name, (dtype, precision) in formats.items():

        def measure(name: str = name, dtype: torch.dtype = dtype, precision: Any = precision) -> list[Row]:
            with restored(plan.device):
                set_float32_precision(precision, plan.device)
                batch = 1 if plan.tiny else 64
                rate = convolution_rate(plan.device, plan.rounds, dtype, batch)
            return [{"format": name, "TFLOP/s of 3x3 convolutions": round(rate / 1e12, 4)}]

        yield name, measure


def step_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells of the training step: each variant, each peer, and some at their largest batch.

    A rehearsal takes every variant of one model, and one variant of the other.
    """
    pairs = [(model, precision) for model in _FAMILIES for precision in ("bf16", "TF32")]
    for model, precision in pairs[::3] if plan.tiny else pairs:
        shortened = plan.tiny and model != pairs[0][0]
        for name in (*_PEERS[model], *(["performance=auto"] if shortened else _VARIANTS)):
            yield f"{model} {precision} {name}", _step_cell(plan, model, precision, name)
    for model in _FAMILIES:
        for name in ("performance=auto",) if plan.tiny else (*_PEERS[model], *_AT_THEIR_LARGEST):
            yield f"{model} bf16 {name}, largest batch", _largest_cell(plan, model, name)


def profile_cells(plan: Plan) -> Iterator[Cell]:
    """Yields the cells that profile one step."""
    for model in _FAMILIES:
        yield model, lambda model=model: _profile(plan, model)


def _step_cell(plan: Plan, model: str, precision: str, name: str) -> Callable[[], list[Row]]:
    batch = 2 if plan.tiny else 12
    return lambda: [_measure(plan, model, precision, name, batch)]


def _largest_cell(plan: Plan, model: str, name: str) -> Callable[[], list[Row]]:
    def measure() -> list[Row]:
        batch, most = (2, 4) if plan.tiny else (32, 1024)
        row: Row = {}
        while batch <= most:
            try:
                row = _measure(plan, model, "bf16", name, batch)
            except torch.OutOfMemoryError:
                break
            batch *= 2
        if not row:
            raise ValueError(f"a batch of {batch} is too large")
        return [row]

    return measure


def _measure(plan: Plan, model: str, precision: str, name: str, batch: int) -> Row:
    with restored(plan.device), tempfile.TemporaryDirectory() as folder:
        config = _config(plan, model, precision, batch, _VARIANTS.get(name, []), folder)
        make = peer_step if name in _PEERS[model] else own_step
        run = make(plan, config, name)
        run()
        run()  # with the optimizer's state, and compiled
        spent = statistics.median(seconds(run, plan.device) for _ in range(plan.rounds))
        peak = peak_with_weights(run, plan.device)
        with FlopCount() as count:
            # A compiler's code cannot be counted, and lean blocks do some of the work twice.
            if name == "performance=off":
                run()
    row: Row = {"model": model, "format": precision, "step": name, "batch": batch}
    row |= {"images/s": round(batch / spent, 2), "peak MiB": round(peak)}
    return row if not count.total else row | {"GFLOP per image": round(count.total / batch / 1e9, 3)}


# --- steps


def _config(
    plan: Plan, model: str, precision: str, batch: int, overrides: list[str], folder: str
) -> RunConfig:
    words = [*_ALONE, *_PRECISIONS[precision], f"batch_size={batch}", f"output_dir={folder}/run"]
    words += [*_TINY[model], *_TINY_BOTH] if plan.tiny else _WHOLE[model]
    return load_config(_FAMILIES[model], ["--config", model, *words, *overrides])


def own_step(plan: Plan, config: RunConfig, name: str) -> Callable[[], None]:
    """Returns the trainer's optimizer step, always on the same batch."""
    trainer = Trainer(config, rehearsal=True)
    if trainer.device.type != plan.device.type:
        raise ValueError(f"the trainer computes on {trainer.device.type}: set ACCELERATE_USE_CPU=true")
    if name == _CHECKPOINTED:
        trainer.networks.autoencoder.enable_gradient_checkpointing()
    batches, meter = itertools.repeat(next(trainer.batches())), Meter()
    return lambda: trainer.optimizer_step(batches, meter)


def peer_step(plan: Plan, config: RunConfig, name: str) -> Callable[[], None]:
    """Returns another program's step on the same networks, with its optimizers."""
    torch.manual_seed(0)
    if config.float32_precision is not None:
        set_float32_precision(config.float32_precision, plan.device)
    size = config.data.height_and_width
    autoencoder = build.build_autoencoder(config.model, max(size)).to(plan.device).train()
    discriminator = build.build_discriminator(config)
    assert discriminator is not None
    discriminator.to(plan.device).train()
    objective = build.build_objective(config.loss).to(plan.device)
    images = torch.rand(config.batch_size, 3, *size, device=plan.device) * 2 - 1
    package = packaged_lpips(objective.perceptual)
    if config.loss.kl is not None:
        step = lambda: diffusers_kl_steps(autoencoder, discriminator, package, images)  # noqa: E731
    elif name == "taming":
        autoencoder = with_taming_blocks(autoencoder)
        losses = with_perceptual(objective, package)
        step = lambda: taming_step(autoencoder, discriminator, losses, images)  # noqa: E731
    else:
        trunk = copy.deepcopy(objective.perceptual.slices).requires_grad_()
        step = lambda: (  # noqa: E731
            diffusers_vqgan_steps(autoencoder, discriminator, trunk, images),
            trunk.zero_grad(),
        )
    settings = {"lr": 1e-5, "betas": (0.5, 0.9), "weight_decay": 0.0, "eps": 1e-8}
    optimizers = [adamw(network, **settings) for network in (autoencoder, discriminator)]
    is_half = config.mixed_precision == "bf16"

    def run() -> None:
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=is_half):
            step()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


# --- profile


def _profile(plan: Plan, model: str) -> list[Row]:
    """Returns the ten costliest kernels of a step, its idle time, and its launches."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = plan.device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with restored(plan.device), tempfile.TemporaryDirectory() as folder:
        config = _config(plan, model, "bf16", 2 if plan.tiny else 12, ["performance=auto"], folder)
        run = own_step(plan, config, "performance=auto")
        for _ in range(3):
            run()
        took = seconds(run, plan.device)
        with torch.profiler.profile(activities=activities) as profiler:
            seconds(run, plan.device)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    totals: dict[str, list[float]] = {}
    for event in profiler.events() or []:
        # An annotation, such as an optimizer's, spans kernels that are counted themselves.
        if event.device_type == kind and not getattr(event, "is_user_annotation", False):
            own = event.device_time_total if on_gpu else event.self_cpu_time_total
            totals.setdefault(event.name, []).append(own / 1e3)
    busy, launches = sum(map(sum, totals.values())), sum(map(len, totals.values()))
    rows: list[Row] = [
        {"model": model, "what": "a step, without the profiler", "ms": round(1e3 * took, 2)},
        {"model": model, "what": "kernels together", "ms": round(busy, 2), "times": launches},
        {"model": model, "what": "no kernel runs", "ms": round(max(0.0, 1e3 * took - busy), 2)},
    ]
    costliest = sorted(totals.items(), key=lambda item: -sum(item[1]))[:10]
    return rows + [
        {"model": model, "what": f"`{name[:90]}`", "ms": round(sum(own), 2), "times": len(own)}
        for name, own in costliest
    ]


# --- helpers


def peak_with_weights(run: Callable[[], None], device: torch.device) -> float:
    """Returns the MiB that are allocated at once during a call, weights included; on a CPU, without these."""
    if device.type != "cuda":
        return peak_memory(run, device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 2**20


@contextmanager
def restored(device: torch.device) -> Iterator[None]:
    """Frees what the body leaves, and restores torch's settings and accelerate's state."""
    settings = TorchSettings.read()
    precision, allows = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        settings.restore()
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = allows
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
