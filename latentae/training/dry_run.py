"""A run's sizes, memory, time and first batch, from its config, before it is started."""

from __future__ import annotations

import math
import shutil
import tempfile
import textwrap
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from latentae import distributed
from latentae.config import RunConfig, config_warnings
from latentae.data import BrokenImageError, ImageDataset
from latentae.report.grids import picture_grid, save_png
from latentae.training.checkpoint import needing_disk
from latentae.training.folder import RunError, step_of
from latentae.training.memory import MemoryUse, tensor_bytes
from latentae.training.rehearsal import Stage, measure_memory, measure_time
from latentae.training.trainer import Trainer
from latentae.training.validation import evaluating

_IMAGES_SHOWN, _COLUMNS = 64, 8
_INDENT = 14


def dry_run(config: RunConfig) -> str:
    """Builds all of a run, makes a few of its steps in memory, and tells what they need; every rank calls it.

    The run's folder is neither read nor written. The first batch is put into a picture beside it,
    ``<output_dir>-dry-run.png``, or into the working folder where there is nothing yet for it to lie beside,
    or where it would lie among the data.

    Raises:
        ValueError: what would stop the run before it started.
        RunError: a step does not fit into the device's memory, or the picture cannot be written.
    """
    trainer = Trainer(config, rehearsal=True)
    try:
        batches = trainer.batches()
        first = next(batches)
        memory = measure_memory(trainer, chain([first], batches))
        stages = measure_time(trainer, batches)
        sentence = trainer.images.broken.report()
    except BrokenImageError as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"a step does not fit into the device's memory: {str(error).splitlines()[0]}\n"
            "lower batch_size (and raise gradient_accumulation_steps as much), lower data.image_size, or use "
            "mixed_precision=bf16"
        ) from error
    picture = _save_picture(first["images"], Path(config.output_dir), Path(config.data.name).expanduser())
    rows = {
        "parameters": _parameters(trainer),
        "latents": _latents(trainer, first["images"]),
        "data": f"{trainer.images.describe()}, of {config.data.name}",
        "steps": _steps(trainer),
        "checkpoint": _disk(trainer),
        "memory": _memory(memory, trainer.device),
        "time": _time(stages),
        "first batch": f"{picture}, the images as training sees them",
    }
    trainer.accelerator.end_training()
    head = (
        f"Dry run of {type(trainer.networks.autoencoder).__name__}; {trainer.folder.root} is left as it is."
    )
    pretrained = trainer.networks.pretrained
    notes = [
        trainer.images.places,
        *([] if pretrained is None else pretrained.describe()),
        *config_warnings(config),
        *([] if sentence is None else [sentence]),
    ]
    columns = min(max(shutil.get_terminal_size((110, 24)).columns, 60), 120)
    wrapped = [
        textwrap.fill(
            f"  {name:<{_INDENT - 2}}{text}",
            columns,
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    ]
    return "\n".join([head, *wrapped, *notes])


def _save_picture(images: Tensor, output_dir: Path, data: Path) -> Path:
    """Writes up to 64 of the images, eight a row, and not into the data, of which it would be an image."""
    shown = images[:_IMAGES_SHOWN]
    columns = min(_COLUMNS, len(shown))
    empty = -len(shown) % columns
    filled = torch.cat([shown, shown.new_ones(empty, *shown.shape[1:])])
    absolute = output_dir.absolute()
    places = [output_dir.parent, Path(), Path(tempfile.gettempdir())]
    folder = next(
        place
        for place in places
        if place.is_dir() and (place == places[-1] or not place.resolve().is_relative_to(data.resolve()))
    )
    path = folder / f"{absolute.name}-dry-run.png"
    if distributed.is_main():
        with needing_disk(path):
            save_png(picture_grid(filled.unflatten(0, (-1, columns))), path)
    return path


def _parameters(trainer: Trainer) -> str:
    networks = trainer.networks
    children = networks.autoencoder.named_children()
    parts = [f"{name} {_count(module)}" for name, module in children if list(module.parameters())]
    text = f"{_count(networks.autoencoder)} ({', '.join(parts)})"
    for learner in networks.learners[1:]:
        text += f"; {learner.name} {_count(learner.module)}"
    return text


def _latents(trainer: Trainer, images: Tensor) -> str:
    """Shapes and compression, from one image that is encoded."""
    model = trainer.networks.ema.model
    image = images[:1].to(trainer.device)
    with evaluating(model), torch.no_grad():
        output = model(image)
    channels, height, width = image.shape[1:]
    latents = output.latents[0]
    shape = "x".join(str(side) for side in latents.shape)
    ratio = image[0].numel() / latents.numel()
    text = f"{channels}x{height}x{width} -> {shape} (f{model.downsampling_factor}), {ratio:.3g}:1 in numbers"
    if output.indices is None or trainer.networks.quantizer is None:
        return text
    tokens, codes = output.indices[0].numel(), trainer.networks.quantizer.num_codes
    bits = tokens * math.log2(codes)
    return (
        f"{text}; {tokens} tokens of {codes:,} codes, {bits / 8:,.0f} bytes, "
        f"{8 * image[0].numel() / bits:.3g}:1 against 8-bit pixels"
    )


def _steps(trainer: Trainer) -> str:
    config = trainer.config
    factors = [config.batch_size, distributed.world_size(), config.gradient_accumulation_steps]
    text = (
        f"{config.max_steps} steps of {math.prod(factors)} images ({' x '.join(map(str, factors))}: batch, "
        "processes, accumulation)"
    )
    if isinstance(trainer.images.training, ImageDataset):  # a stream does not know how much is to come
        an_epoch = len(trainer.images.training) / math.prod(factors)
        text += f"; {an_epoch:.1f} steps an epoch, {config.max_steps / an_epoch:.1f} epochs"
    newest = trainer.folder.checkpoint_to_resume(trainer.folder.resume_of(config))
    return text if newest is None else f"{text}; would continue after step {step_of(newest)}"


def _disk(trainer: Trainer) -> str:
    """Bytes of a checkpoint, from what would go into it."""
    networks = trainer.networks
    state = [[x.module.state_dict(), dict(x.optimizer.state)] for x in networks.learners]
    size = tensor_bytes([state, networks.ema.state_dict()])
    kept = trainer.config.keep_checkpoints
    return f"{_size(size)}, {kept} kept and one more while it is written: {_size(size * (kept + 1))}"


def _memory(use: MemoryUse, device: torch.device) -> str:
    parts = {
        "weights": use.weights,
        "gradients": use.gradients,
        "optimizers": use.optimizer,
        "average": use.average,
        "loss networks": use.losses,
        "activations": use.activations,
    }
    text = f"about {_size(use.total)} a device ({', '.join(f'{k} {_size(v)}' for k, v in parts.items())})"
    if device.type != "cuda":
        return text
    peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    return f"{text}; measured {_size(peak)} of {_size(whole)}"


def _time(stages: list[Stage]) -> str:
    seconds = sum((stage.last - stage.first) * stage.seconds for stage in stages)
    each = ", ".join(f"{stage.seconds:.3g} s from step {stage.first}" for stage in stages)
    return f"about {tqdm.format_interval(seconds)} of training ({each}), without measuring and saving"


def _count(module: torch.nn.Module) -> str:
    """How many parameters: 20, 4.1 k, 545 k, 1.45 M."""
    return _in_units(sum(parameter.numel() for parameter in module.parameters()), ("", " k", " M"))


def _size(size: float) -> str:
    return _in_units(size, (" B", " kB", " MB", " GB"))


def _in_units(number: float, units: tuple[str, ...]) -> str:
    """Three digits and the unit, each a thousand times the one before; all digits of the last."""
    for unit in units[:-1]:
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}{units[-1]}" if number < 999.5 else f"{number:,.0f}{units[-1]}"
