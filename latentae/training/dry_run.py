"""The dry run: a run's sizes, memory, time and first batch, from its config, before it is started."""

from __future__ import annotations

import math
import shutil
import tempfile
import textwrap
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from latentae import distributed
from latentae.config import RunConfig, config_warnings
from latentae.data import Batch, BrokenImageError, ImageDataset
from latentae.models.decoders import downscale
from latentae.report.grids import picture_grid, save_png
from latentae.training.checkpoint import needing_disk
from latentae.training.finish import evaluating
from latentae.training.log import Meter
from latentae.training.run_folder import step_of
from latentae.training.trainer import Trainer

_IMAGES_SHOWN, _COLUMNS = 64, 8
_INDENT = 14
_TIMED_STEPS = 2


def dry_run(config: RunConfig) -> str:
    """Builds a run and makes a few steps in memory; returns what it needs. Every rank must call it.

    The run's folder is neither read nor written. The first batch goes into a picture beside it,
    ``<output_dir>-dry-run.png``. If the folder for that is missing, or is among the data, the picture goes
    into the working folder.

    Raises:
        ValueError: what would stop the run before it started.
        RunError: the picture cannot be written.
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
    picture = _save_picture(
        first["images"],
        Path(config.output_dir),
        Path(config.data.name).expanduser(),
        alpha=config.data.alpha,
    )
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


# Memory


@dataclass
class MemoryUse:
    """Bytes on one device while a step is made, by what they are for.

    Attributes:
        weights: parameters and buffers of the networks that learn.
        gradients: of their parameters.
        optimizer: state of the optimizers.
        average: the moving average of the autoencoder.
        losses: networks that only measure, such as LPIPS's.
        activations: the most that everything else in the forward and backward passes takes at any moment.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    losses: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum: the peak of a step if all gradients are there in its costliest moment."""
        return sum(getattr(self, part.name) for part in fields(self))


class WorkingSpace(TorchDispatchMode):
    """Context that counts the tensors made in it, for as long as they live.

    Attributes:
        peak: the most bytes at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._present = 0
        self._sizes: dict[int, int] = {}  # a storage's address -> its bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors([args, kwargs or {}])}
        for tensor in _tensors([output]):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address and address not in given and address not in self._sizes:
                self._sizes[address] = storage.nbytes()
                self._present += storage.nbytes()
                self.peak = max(self.peak, self._present)
                weakref.finalize(storage, self._release, address)
        return output

    def leave_out(self, tensor: Tensor) -> None:
        """Counts a tensor no longer, such as one that is counted elsewhere."""
        self._release(tensor.untyped_storage().data_ptr())

    def _release(self, address: int) -> None:
        self._present -= self._sizes.pop(address, 0)


def measure_memory(trainer: Trainer, batches: Iterator[Batch]) -> MemoryUse:
    """Makes one whole optimizer step, the costliest of the run, and measures the memory that it takes."""
    networks = trainer.networks
    modules = [learner.module for learner in networks.learners]
    judges = [networks.step.objective, *networks.step.latent_losses.networks, trainer.validation_lpips]
    if networks.step.teacher is not None:
        judges.append(networks.step.teacher.model)
    trainer.step = _costliest_step(trainer)
    largest = max(trainer.config.data.training_sizes, key=math.prod)
    # The peak leaves out gradients, which are counted by the sizes of the parameters, and the first update,
    # which makes the optimizers' state: in all later steps that is there from the beginning.
    space, peaks = WorkingSpace(), list[int]()
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: space.leave_out(p.grad)) for p in learning]
    hooks.append(networks.learners[0].optimizer.register_step_pre_hook(lambda *_: peaks.append(space.peak)))
    with networks.step.latent_losses.at_full_size(), space:
        trainer.optimizer_step(_resized(batches, largest), Meter())
    for hook in hooks:
        hook.remove()
    return MemoryUse(
        weights=module_bytes(*modules),
        gradients=tensor_bytes(learning),
        optimizer=tensor_bytes([dict(learner.optimizer.state) for learner in networks.learners]),
        average=module_bytes(networks.ema.model),
        losses=module_bytes(*judges),
        activations=[*peaks, space.peak][0],
    )


def _costliest_step(trainer: Trainer) -> int:
    """Returns the first step in which everything that ever learns learns at once."""
    adversary = trainer.networks.step.adversary
    if adversary is None:
        return 0
    terms, every = adversary.terms, 1 if adversary.r1 is None else adversary.r1.every
    for step in range(terms.start_step, terms.start_step + terms.update_every * every):
        updates = terms.discriminator_updates(step)
        if terms.discriminator_learns(step) and updates % every == 0 and step < trainer.config.max_steps:
            return step
    return min(terms.first_discriminator_step, trainer.config.max_steps - 1)


def _resized(batches: Iterator[Batch], size: tuple[int, int]) -> Iterator[Batch]:
    """Yields the batches with all images at this height and width: memory has to suffice for the largest."""
    for batch in batches:
        if batch["images"].shape[-2:] != size:
            batch["images"] = functional.interpolate(batch["images"], size)
        yield batch


def module_bytes(*modules: nn.Module) -> int:
    """Returns the bytes of the modules' parameters and buffers, each tensor once."""
    tensors = {
        id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())
    }
    return tensor_bytes(list(tensors.values()))


def tensor_bytes(state: Any) -> int:
    """Returns the bytes of all tensors in nested dicts and sequences, such as an optimizer's state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


# Time


@dataclass
class Stage:
    """A stretch of the run in which the same networks learn.

    Attributes:
        first, last: its optimizer steps, from 0; ``last`` is the next stage's first.
        seconds: per step.
    """

    first: int
    last: int
    seconds: float = 0.0


def measure_time(trainer: Trainer, batches: Iterator[Batch]) -> list[Stage]:
    """Returns the run's stages with the time of a step in each; ``measure_memory`` has warmed up."""
    config, networks = trainer.config, trainer.networks
    starts = {0, *(learner.first_step for learner in networks.learners)}
    if networks.step.adversary is not None:
        starts.add(networks.step.adversary.terms.start_step)
    bounds = [*sorted(start for start in starts if start < config.max_steps), config.max_steps]
    stages = [Stage(first, last) for first, last in pairwise(bounds)]
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    meter = Meter()
    if config.compile:  # which the memory's counter has prevented so far
        trainer.step = _costliest_step(trainer)
        trainer.optimizer_step(batches, meter)
    for stage in stages:
        trainer.step = stage.first
        _wait_for(trainer.device)
        began = time.perf_counter()
        for _ in range(_TIMED_STEPS):
            trainer.optimizer_step(batches, meter)
        _wait_for(trainer.device)
        stage.seconds = (time.perf_counter() - began) / _TIMED_STEPS
    return stages


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# The rows of the report


def _save_picture(images: Tensor, output_dir: Path, data: Path, *, alpha: bool = False) -> Path:
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
            save_png(picture_grid(filled.unflatten(0, (-1, columns)), alpha=alpha), path)
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
    image = downscale(image, model.upscale, alpha=trainer.config.data.alpha)
    with evaluating(model), torch.no_grad():
        output = model(image)
    channels, height, width = image.shape[1:]
    latents = output.latents[0]
    shape = "x".join(str(side) for side in latents.shape)
    ratio = image[0].numel() / latents.numel()
    text = f"{channels}x{height}x{width} -> {shape} (f{model.downsampling_factor}), {ratio:.3g}:1 in numbers"
    if model.upscale > 1:
        text += f"; decoded to {'x'.join(str(side) for side in output.sample.shape[1:])} (x{model.upscale})"
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
    """Formats a number of parameters: 20, 4.1 k, 545 k, 1.45 M."""
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
