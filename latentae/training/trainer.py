"""The training run, from its first step to its exported model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentae import build, distributed
from latentae.config import RunConfig, config_warnings, dump_config
from latentae.data import Batch, BrokenImageError, training_loader
from latentae.training.accelerator import create_accelerator, gather_object
from latentae.training.broken import TooManyBrokenImagesError
from latentae.training.checkpoint import load_checkpoint, needing_disk, save_checkpoint
from latentae.training.finish import calibrate_and_measure, export_run
from latentae.training.folder import RunError, RunFolder, write_json
from latentae.training.images import open_images
from latentae.training.learner import update
from latentae.training.meter import Meter
from latentae.training.networks import build_networks
from latentae.training.previews import save_preview
from latentae.training.randomness import StepRandomness
from latentae.training.recorder import Recorder
from latentae.training.summary import describe

_VALIDATION_TRUNK = "alex"


class Trainer:
    """A run from its config: builds everything, takes up where a checkpoint left off, trains, exports.

    Args:
        config: a validated config.

    Raises:
        ValueError: an output folder, images or a checkpoint that cannot be used.
        WeightsNotFoundError: the perceptual loss's trunk cannot be had.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = RunFolder(Path(config.output_dir))
        self.folder.check(config)
        self.accelerator = create_accelerator(config)
        self.device = self.accelerator.device
        self.step = 0
        self.seconds = 0.0
        with distributed.main_first():  # the first rank fetches the weights, the others find them
            objective = build.build_objective(config.loss).to(self.device)
            self.validation_lpips = build.build_lpips(_VALIDATION_TRUNK).to(self.device)
        self.images = open_images(config, gather=gather_object, say=self.accelerator.print)
        self.networks = build_networks(config, self.accelerator, objective)
        self._resume()
        if distributed.is_main():
            self.folder.create(config)
            self.folder.forget_after(self.step)
        distributed.barrier()

    def _resume(self) -> None:
        """Takes up the run's newest checkpoint, or the one asked for."""
        path = self.folder.checkpoint_to_resume(self.config.resume)
        if path is not None:
            own = path.parent == self.folder.checkpoints
            progress = load_checkpoint(path, self.accelerator.load_state, self._global_batch(), own=own)
            self.step, self.seconds = progress["step"], progress["seconds"]

    def fit(self) -> dict[str, Any]:
        """Trains to ``max_steps``, measures and exports; returns what ``summary.json`` holds.

        Raises:
            RunError: the run cannot go on; what was saved before is untouched.
        """
        config = self.config
        with needing_disk(self.folder.root):
            self.accelerator.init_trackers("latentae", config={"config": dump_config(config)})
        recorder = Recorder(
            self.folder,
            step=self.step,
            max_steps=config.max_steps,
            images_per_step=self._global_batch() * config.gradient_accumulation_steps,
            track=lambda values, step: self.accelerator.log(values, step=step),
            enabled=distributed.is_main(),
        )
        for sentence in [self._describe_start(), *config_warnings(config)]:
            recorder.say(sentence)
        try:
            self._train(recorder)
            summary = self._finish()
        except BrokenImageError as error:
            self._save_checkpoint()
            reason = str(error).strip().splitlines()[-1]
            raise RunError(f"{reason}\nthe run is saved at step {self.step}") from error
        finally:
            recorder.close()
        self.accelerator.end_training()
        recorder.say("\n" + describe(self.folder, summary))
        return summary

    def _train(self, recorder: Recorder) -> None:
        """The optimizer steps that are left, and what falls due between them."""
        config = self.config
        meter = Meter(None if self.networks.quantizer is None else self.networks.quantizer.num_codes)
        batches = self._batches()
        started = time.perf_counter() - self.seconds
        while self.step < config.max_steps:
            loss = self._optimizer_step(batches, meter)
            self.seconds = time.perf_counter() - started
            recorder.advance()
            if self._due(config.log_every) or self._due(config.checkpoint_every):
                self._check_finite(loss)
            if self._due(config.log_every):
                recorder.write(self.step, meter.read())
                self._report_broken(recorder)
            if self._due(config.sample_every):
                self._save_preview()
            if self._due(config.checkpoint_every):
                self._save_checkpoint()

    def _check_finite(self, loss: Tensor) -> None:
        """Raises RunError on all ranks alike, before anything that was saved is replaced by what diverged."""
        if not torch.isfinite(distributed.all_reduce_mean(loss)):
            saved = ", ".join(path.name for path in self.folder.all_checkpoints()) or "none"
            raise RunError(
                f"the loss is no finite number at step {self.step}: it diverged. Checkpoints before it: "
                f"{saved}. Try a lower optimizer.learning_rate, max_grad_norm=1.0 or mixed_precision=no"
            )

    def _describe_start(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.networks.autoencoder.parameters())
        begin = f"continuing at step {self.step}" if self.step else "starting"
        return (
            f"{begin}: {type(self.networks.autoencoder).__name__}, {parameters / 1e6:.2f} M parameters, "
            f"f{self.networks.autoencoder.downsampling_factor}; {len(self.images.training)} training and "
            f"{len(self.images.validation)} validation images; {distributed.world_size()} x "
            f"{self.device.type}"
        )

    def _batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the present step on; the first of a run also starts the codebook."""
        config = self.config
        loader = training_loader(
            self.images.training,
            batch_size=config.batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            seed=config.seed,
            start_batch=self.step * config.gradient_accumulation_steps,
            num_workers=config.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        batches: Iterator[Batch] = iter(loader)
        if self.step == 0 and self.networks.quantizer is not None:
            first = next(batches)
            with torch.no_grad():
                latents = self.networks.autoencoder.encode(first["images"].to(self.device)).latents
            self.networks.quantizer.start(latents, self._randomness().generator("codebook"))
            batches = itertools.chain([first], batches)
        return batches

    def _optimizer_step(self, batches: Iterator[Batch], meter: Meter) -> Tensor:
        """The micro-batches of one optimizer step, then the update and what follows it; the last loss."""
        for micro_batch in range(self.config.gradient_accumulation_steps):
            batch = next(batches)
            self.images.broken.add(batch["broken"])
            images = batch["images"].to(self.device, non_blocking=True)
            with self.accelerator.accumulate(*(learner.module for learner in self.networks.learners)):
                result = self.networks.step(images, self._randomness(micro_batch))
            meter.add(result.losses, result.indices)
        meter.add(
            update(self.networks.learners, self.step, self.accelerator.scaler, self.config.max_grad_norm)
        )
        self.step += 1
        if self.networks.quantizer is not None:
            self.networks.quantizer.commit(self.step, self._randomness().generator("codebook"))
        self.networks.ema.update(self.networks.autoencoder)
        return result.losses["loss"]

    def _randomness(self, micro_batch: int = 0) -> StepRandomness:
        return StepRandomness(
            self.config.seed,
            self.step,
            micro_batch,
            distributed.rank(),
            distributed.world_size(),
            self.device,
        )

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.max_steps

    def _global_batch(self) -> int:
        return self.config.batch_size * distributed.world_size()

    def _report_broken(self, recorder: Recorder) -> None:
        try:
            sentence = self.images.broken.report()
        except TooManyBrokenImagesError as error:
            self._save_checkpoint()
            raise RunError(f"{error}\nthe run is saved at step {self.step}") from error
        if sentence is not None:
            recorder.say(sentence)

    def _save_preview(self) -> None:
        if distributed.is_main():
            path = self.folder.sample(self.step)
            with needing_disk(path):
                save_preview(self.networks.ema.model, self.images.preview.to(self.device), path)

    def _save_checkpoint(self) -> None:
        progress = {"step": self.step, "seconds": self.seconds, "global_batch": self._global_batch()}
        save_checkpoint(self.folder, self.accelerator.save_state, progress, self.config.keep_checkpoints)

    def _finish(self) -> dict[str, Any]:
        """Calibrates, measures and exports the averaged weights."""
        numbers = calibrate_and_measure(
            self.networks.ema.model,
            self.images.training,
            self.images.validation,
            self.validation_lpips,
            self.config,
            device=self.device,
            say=self.accelerator.print,
        )
        summary = {"step": self.step, **numbers, "seconds": round(self.seconds, 1)}
        if distributed.is_main():
            export_run(self.networks.ema.model, self.folder)
            with needing_disk(self.folder.summary):
                write_json(self.folder.summary, summary)
        distributed.barrier()
        return summary
