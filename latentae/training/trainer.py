"""The training run: the only module that knows accelerate."""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, gather_object, set_seed
from torch import Tensor, nn

from latentae import build, distributed
from latentae.config import OptimizerConfig, RunConfig, config_warnings, dump_config
from latentae.data import Batch, BrokenImageError, Sources, check_images, training_loader, without_broken
from latentae.models import KLVAE
from latentae.quantizers import CodebookQuantizer
from latentae.training.broken import BrokenImages, TooManyBrokenImagesError
from latentae.training.checkpoint import load_checkpoint, needing_disk, save_checkpoint
from latentae.training.ema import EMA
from latentae.training.finish import calibrate_and_measure, export_run
from latentae.training.folder import RunError, RunFolder, write_json
from latentae.training.learner import Learner, update
from latentae.training.meter import Meter
from latentae.training.optim import OPTIMIZERS, LearningRate
from latentae.training.previews import save_preview
from latentae.training.randomness import StepRandomness
from latentae.training.recorder import Recorder
from latentae.training.step import TrainingStep
from latentae.training.summary import describe

_PREVIEW_IMAGES = 8
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
        self.accelerator = _create_accelerator(config)
        self.device = self.accelerator.device
        self.step = 0
        self.seconds = 0.0
        with distributed.main_first():  # the first rank fetches the weights, the others find them
            self.objective = build.build_objective(config.loss).to(self.device)
            self.validation_lpips = build.build_lpips(_VALIDATION_TRUNK).to(self.device)
        self._build_datasets()
        self._build_learners()
        self._resume()
        if distributed.is_main():
            self.folder.create(config)
            self.folder.forget_after(self.step)
        distributed.barrier()

    def _build_datasets(self) -> None:
        data, channels = self.config.data, self.config.model.in_channels
        sources = build.build_sources(data)
        validation, broken = without_broken(sources.validation, channels)
        self.broken = BrokenImages(data.max_broken, gather_object)
        self.broken.add([*broken, *check_images(sources.train, channels, data.check_images)])
        sentence = self.broken.report()
        if sentence is not None:
            self.accelerator.print(sentence)
        self.training_images, self.validation_images = build.build_datasets(
            Sources(sources.train, validation), data, channels, self.config.seed
        )
        count = min(_PREVIEW_IMAGES, len(self.validation_images))
        spread = [i * len(self.validation_images) // count for i in range(count)]
        self.preview = torch.stack([self.validation_images[0, i]["images"] for i in spread]).to(self.device)

    def _build_learners(self) -> None:
        config = self.config
        set_seed(config.seed)
        size = config.data.image_size
        self.autoencoder = build.build_autoencoder(config.model, size if isinstance(size, int) else max(size))
        if isinstance(self.autoencoder, KLVAE) and config.loss.kl is None:
            self.autoencoder.pin_posterior()
        self.autoencoder.to(self.device)
        discriminator = build.build_discriminator(config)
        adversarial = build.build_adversarial_terms(config.loss)
        self.ema = EMA(self.autoencoder, config.ema_decay or 0.0)
        self.learners = [self._learner("autoencoder", self.autoencoder, config.optimizer)]
        if discriminator is not None and config.discriminator is not None:
            first_step = adversarial.first_discriminator_step
            self.learners.append(
                self._learner("discriminator", discriminator, config.discriminator.optimizer, first_step)
            )
        self.quantizer: CodebookQuantizer | None = getattr(self.autoencoder, "quantize", None)
        self.accelerator.register_for_checkpointing(self.ema, _Upkeep(self.quantizer))
        self.training_step = TrainingStep(
            autoencoder=self.learners[0].module,
            last_layer=self.autoencoder.last_layer,
            objective=self.objective,
            discriminator=self.learners[1].module if discriminator is not None else None,
            adversarial=adversarial,
            regulariser=build.build_regulariser(config.loss),
            latents_shape=None if config.loss.kl is None else self.autoencoder.latents_shape,
            backward=self.accelerator.backward,
            reuse_discriminator_forward=not getattr(discriminator, "forward_has_state", False),
        )

    def _learner(self, name: str, module: nn.Module, config: OptimizerConfig, first_step: int = 0) -> Learner:
        optimizer = OPTIMIZERS[config.type](
            module.to(self.device).parameters(),
            learning_rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            epsilon=config.epsilon,
        )
        rate = LearningRate(
            config.learning_rate,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            final_scale=config.final_scale,
            first_step=first_step,
            last_step=self.config.max_steps,
        )
        wrapped, _ = self.accelerator.prepare(module, optimizer)
        return Learner(name, wrapped, optimizer, rate, first_step)

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
        meter = Meter(None if self.quantizer is None else self.quantizer.num_codes)
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
        parameters = sum(parameter.numel() for parameter in self.autoencoder.parameters())
        begin = f"continuing at step {self.step}" if self.step else "starting"
        return (
            f"{begin}: {type(self.autoencoder).__name__}, {parameters / 1e6:.2f} M parameters, "
            f"f{self.autoencoder.downsampling_factor}; {len(self.training_images)} training and "
            f"{len(self.validation_images)} validation images; {distributed.world_size()} x "
            f"{self.device.type}"
        )

    def _batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the present step on; the first of a run also starts the codebook."""
        config = self.config
        loader = training_loader(
            self.training_images,
            batch_size=config.batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            seed=config.seed,
            start_batch=self.step * config.gradient_accumulation_steps,
            num_workers=config.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        batches: Iterator[Batch] = iter(loader)
        if self.step == 0 and self.quantizer is not None:
            first = next(batches)
            with torch.no_grad():
                latents = self.autoencoder.encode(first["images"].to(self.device)).latents
            self.quantizer.start(latents, self._randomness().generator("codebook"))
            batches = itertools.chain([first], batches)
        return batches

    def _optimizer_step(self, batches: Iterator[Batch], meter: Meter) -> Tensor:
        """The micro-batches of one optimizer step, then the update and what follows it; the last loss."""
        for micro_batch in range(self.config.gradient_accumulation_steps):
            batch = next(batches)
            self.broken.add(batch["broken"])
            images = batch["images"].to(self.device, non_blocking=True)
            with self.accelerator.accumulate(*(learner.module for learner in self.learners)):
                result = self.training_step(images, self._randomness(micro_batch))
            meter.add(result.losses, result.indices)
        meter.add(update(self.learners, self.step, self.accelerator.scaler, self.config.max_grad_norm))
        self.step += 1
        if self.quantizer is not None:
            self.quantizer.commit(self.step, self._randomness().generator("codebook"))
        self.ema.update(self.autoencoder)
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
            sentence = self.broken.report()
        except TooManyBrokenImagesError as error:
            self._save_checkpoint()
            raise RunError(f"{error}\nthe run is saved at step {self.step}") from error
        if sentence is not None:
            recorder.say(sentence)

    def _save_preview(self) -> None:
        if distributed.is_main():
            path = self.folder.sample(self.step)
            with needing_disk(path):
                save_preview(self.ema.model, self.preview, path)

    def _save_checkpoint(self) -> None:
        progress = {"step": self.step, "seconds": self.seconds, "global_batch": self._global_batch()}
        save_checkpoint(self.folder, self.accelerator.save_state, progress, self.config.keep_checkpoints)

    def _finish(self) -> dict[str, Any]:
        """Calibrates, measures and exports the averaged weights."""
        numbers = calibrate_and_measure(
            self.ema.model,
            self.training_images,
            self.validation_images,
            self.validation_lpips,
            self.config,
            device=self.device,
            say=self.accelerator.print,
        )
        summary = {"step": self.step, **numbers, "seconds": round(self.seconds, 1)}
        if distributed.is_main():
            export_run(self.ema.model, self.folder)
            with needing_disk(self.folder.summary):
                write_json(self.folder.summary, summary)
        distributed.barrier()
        return summary


class _Upkeep:
    """A codebook's upkeep, as something that accelerate saves and loads."""

    def __init__(self, quantizer: CodebookQuantizer | None) -> None:
        self.quantizer = quantizer

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.quantizer is None else self.quantizer.upkeep

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])


def _create_accelerator(config: RunConfig) -> Accelerator:
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(f"trackers asks for {tracker}, which is not installed: pip install {tracker}")
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("mixed_precision is fp16, which needs a GPU; use bf16 or no")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=config.output_dir),
        # Codebooks and averages are kept alike by sums over the ranks; a broadcast would keep rank 0's alone.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )
    if accelerator.device.type == "cpu":
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(config.cpu_threads or max(1, len(os.sched_getaffinity(0)) // local_ranks))
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    return accelerator
