"""Sets up accelerate: devices, processes, precision, trackers. The only module that imports it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
)
from numpy.typing import NDArray
from torch import Tensor

from latentae import distributed
from latentae.config import DATA_SPELLING_KEYS, RunConfig, changed_keys
from latentae.devices import has_native_bfloat16, usable_cores

_OWN_KEYS = DATA_SPELLING_KEYS | {"output_dir", "resume", "cpu_threads", "data.cache_megabytes"}
"""Keys that may differ between the processes of a run: paths on a node, and the node's size."""

__all__ = [
    "Accelerator",
    "create_accelerator",
    "gather_object",
    "process_group_timeout",
    "settle_precision",
    "track",
    "track_picture",
]


def create_accelerator(config: RunConfig) -> Accelerator:
    """Returns the accelerator of a run, and joins the processes that a launcher started.

    Raises:
        ValueError: a tracker that is not installed, a precision that this machine does not support, processes
            that accelerate does not join, processes with different configs, or settings of the launcher
            that contradict the config.
    """
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"trackers asks for {tracker}, which is not installed: pip install {tracker}")
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("mixed_precision is fp16, which needs a GPU; use bf16 or no")
    # torch advises to keep `broadcast_buffers` until its successor can also skip buffers at the start.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # The process keeps accelerate's precision, and a run before this one may have had another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else it would not join processes that torchrun started
        mixed_precision=config.mixed_precision,
        # Not by the argument of that name, which an environment variable overrides.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=config.output_dir),
        # Sums over the ranks keep codebooks and averages equal; a broadcast would keep only rank 0's.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=process_group_timeout(config)),
        ],
    )
    if accelerator.num_processes != distributed.world_size():
        raise ValueError(
            f"{distributed.world_size()} processes were started, of which accelerate joins "
            f"{accelerator.num_processes}: start them with `accelerate launch`, and set "
            "ACCELERATE_USE_CPU=true to train on the CPU"
        )
    _check_obeyed(accelerator, config)
    _check_alike(config)
    if accelerator.device.type == "cpu":
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(config.cpu_threads or max(1, usable_cores() // local_ranks))
    if config.deterministic:
        # Older releases of torch, such as 2.6, refuse matrix products on CUDA without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def settle_precision(config: RunConfig, recorded: str | None) -> RunConfig:
    """Returns the config with a number format in place of `mixed_precision: auto`.

    Args:
        recorded: that of the run that is resumed.
    """
    if config.mixed_precision != "auto":
        return config
    chosen = recorded or ("bf16" if has_native_bfloat16() else "no")
    return config.model_copy(update={"mixed_precision": chosen})


def process_group_timeout(config: RunConfig) -> timedelta:
    """Returns how long a process waits for the others before the run fails."""
    return timedelta(hours=config.process_group_timeout_hours)


def _check_obeyed(accelerator: Accelerator, config: RunConfig) -> None:
    """Raises ValueError if Accelerate uses other settings than the config."""
    engines = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    expected = {
        "gradient_accumulation_steps": (
            accelerator.gradient_accumulation_steps,
            config.gradient_accumulation_steps,
        ),
        "mixed_precision": (
            accelerator.mixed_precision,
            config.mixed_precision or accelerator.mixed_precision,
        ),
        "torch.compile": (accelerator.state.dynamo_plugin.backend.value, "NO"),
        "FSDP, DeepSpeed or Megatron-LM": (accelerator.distributed_type in engines, False),
    }
    for name, (made, wanted) in expected.items():
        if made != wanted:
            raise ValueError(
                f"Accelerate uses {made} for {name}, and the config says {wanted}: look for the setting in "
                "the environment (ACCELERATE_...) and in `accelerate config`"
            )


def _check_alike(config: RunConfig) -> None:
    """Raises ValueError on every rank if the ranks were started with different settings."""
    configs: list[RunConfig] = gather_object([config])
    for rank, other in enumerate(configs):
        differences = "".join(
            f"\n  {key}: {first} in process 0, {own} in process {rank}"
            for key, (first, own) in changed_keys(configs[0], other).items()
            if key not in _OWN_KEYS
        )
        if differences:
            raise ValueError(
                f"the processes were started with different settings:{differences}\n"
                "start all of them with the same arguments and the same launcher settings"
            )


def track(
    accelerator: Accelerator, numbers: Mapping[str, float], histograms: Mapping[str, Tensor], step: int
) -> None:
    """Passes numbers, and the values [N] behind histograms, to the trackers."""
    accelerator.log(dict(numbers), step=step)
    for tracker in accelerator.trackers:
        for name, values in histograms.items():
            if tracker.name == "tensorboard":
                tracker.writer.add_histogram(name, values, step)
            elif tracker.name == "wandb":
                histogram = importlib.import_module("wandb").Histogram(values.tolist())
                tracker.log({name: histogram}, step=step)


def track_picture(accelerator: Accelerator, name: str, picture: NDArray[np.uint8], step: int) -> None:
    """Passes a picture [H, W, 3] to the trackers."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: picture[None]}, step=step, **layout)
