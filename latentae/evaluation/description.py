"""What a report says beside its numbers: everything they depend on, and what the models are."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from latentae import __version__, distributed
from latentae.evaluation.assembly import Assembled, percentiles
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.measures import Measures
from latentae.evaluation.models import Subject, factor_of
from latentae.evaluation.request import Request
from latentae.report.results import ModelDetails

_PERCENTILE_METRICS = ("psnr", "ssim", "lpips_alex", "lpips_vgg")


def describe_protocol(
    request: Request,
    split: str,
    blocks: ImageBlocks,
    measures: Measures,
    result: Assembled,
    device: torch.device,
) -> dict[str, Any]:
    """Every choice that numbers depend on, with hashes; two reports of equal ones can be compared.

    Args:
        result: of any of the models; all were measured on the same images.
    """
    return {
        **blocks.protocol.describe(),
        "images": len(result.indices),
        "unreadable": result.unreadable,
        "data": {
            "name": request.data,
            "split": split,
            "limit": request.limit,
            "value_range": request.value_range,
            "list_sha256": blocks.list_sha256,
            "pixels_sha256": result.pixels_sha256,
        },
        "channels": blocks.channels,
        "precision": request.precision,
        "networks": measures.identities,
        "cycle_images": min(request.settings.cycle_images, len(blocks.indices)),
        "code": {"latentae": __version__, "commit": commit(), "torch": torch.__version__},
        "hardware": f"{distributed.world_size()} x {hardware(device)}",
        "batch_size": request.settings.batch_size,
    }


def describe_model(subject: Subject, result: Assembled, measures: Measures) -> ModelDetails:
    """What else than its metrics is known of a model."""
    model: Any = subject.model
    drift = {
        int(name.removeprefix("cycle_psnr_")): row.nanmean().item()
        for name, row in result.values.items()
        if name.startswith("cycle_psnr_")
    }
    remarks = [*measures.remarks, *result.remarks]
    if result.unreadable:
        lost, first = len(result.unreadable), result.unreadable[0]
        total = lost + len(result.indices)
        remarks.append(f"{lost} of {total} images could not be measured and count nowhere, such as {first}")
    return ModelDetails(
        class_name=type(model).__name__,
        path=subject.path,
        sha256=subject.sha256,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        downsampling_factor=factor_of(subject),
        latent_channels=model.latents_channels,
        latents=result.latents,
        percentiles={
            name: percentiles(result.values[name]) for name in _PERCENTILE_METRICS if name in result.metrics
        },
        cycle_psnr={str(rounds): drift[rounds] for rounds in sorted(drift)},
        remarks=remarks,
    )


def hardware(device: torch.device) -> str:
    """The name of the device, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def commit() -> str | None:
    """The commit of the checkout that this package lies in; None for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
