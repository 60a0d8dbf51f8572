"""How many steps a denoiser trains for: as many for every model, whatever they are counted by."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch

from latentae.probe.batches import LatentBatch
from latentae.probe.denoiser import DenoiserSize, build_denoiser
from latentae.probe.folder import ProbeFolder, write_json
from latentae.probe.request import DEFAULT_STEPS, ProbeRequest
from latentae.probe.training import DenoiserTraining, TrainingSettings
from latentae.probe.validation import FlowValidation

_WARM_UP, _TIMED = 3, 10
_FILE = "budget.json"


def resolve_steps(
    request: ProbeRequest,
    folder: ProbeFolder,
    latent_shape: tuple[int, int, int],
    token_side: int,
    device: torch.device,
) -> int:
    """The steps of each denoiser: those asked for, or as many as fit into the seconds asked for.

    The speed is measured once, on the first model's latents, and noted in the folder: a continued probe, and
    every model, takes the same number.
    """
    if request.seconds is None:
        return request.steps or DEFAULT_STEPS
    file = folder.root / _FILE
    if not file.is_file():
        seconds = seconds_a_step(latent_shape, token_side, request.size, request.batch_size, device)
        write_json(file, {"seconds_a_step": seconds, "steps": max(1, round(request.seconds / seconds))})
    return int(json.loads(file.read_text(encoding="utf-8"))["steps"])


def seconds_a_step(
    latent_shape: tuple[int, int, int],
    token_side: int,
    size: DenoiserSize,
    batch_size: int,
    device: torch.device,
) -> float:
    """What an optimizer step takes on this machine at present."""
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(batch_size, *latent_shape, generator=draws)
    batch = LatentBatch(latents, torch.zeros(batch_size, dtype=torch.int64))
    training = DenoiserTraining(
        denoiser=build_denoiser(latent_shape, token_side, size, 0).to(device),
        batches=lambda step: batch,
        validation=FlowValidation(batch, torch.ones(latent_shape[0]), 0),
        settings=replace(TrainingSettings(steps=1000), points=1),
        device=device,
    )
    training.advance(_WARM_UP)
    _wait(device)
    started = time.monotonic()
    training.advance(_TIMED)
    _wait(device)
    return (time.monotonic() - started) / _TIMED


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
