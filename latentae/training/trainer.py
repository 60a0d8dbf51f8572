"""A training run, from its first step to its exported model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from latentae import build, distributed
from latentae.config import RunConfig, config_warnings, dump_config
from latentae.console import describe_lack_of_memory, is_out_of_memory
from latentae.data import Batch, BrokenImageError, WorkerDiedError, sample_dataset, training_loader
from latentae.devices import to_float64_on_cpu
from latentae.files import write_json, write_text
from latentae.latents.cache import ImagesWithLatents
from latentae.lock import FolderLock
from latentae.models.decoders import downscale
from latentae.report.figures import code_usage
from latentae.report.grids import Picture, save_png
from latentae.training.accelerator import (
    create_accelerator,
    gather_object,
    process_group_timeout,
    settle_precision,
    track,
    track_picture,
)
from latentae.training.adversary import GRADIENT_LOSSES, AdversaryWatch
from latentae.training.checkpoint import choose_checkpoint, load_checkpoint, needing_disk, save_checkpoint
from latentae.training.codebook import monitor_codebook, start_codebook
from latentae.training.finish import NoMeasurementError, calibrate_and_measure, export_run, validate
from latentae.training.guard import RETRY, Guard, diagnose, explain
from latentae.training.images import (
    TooManyBrokenImagesError,
    compare_data,
    held_out_before,
    load_whole_images,
    open_images,
)
from latentae.training.launcher import apply_launcher_settings
from latentae.training.log import Meter, Recorder
from latentae.training.networks import build_networks
from latentae.training.optimizers import keep_settings
from latentae.training.pictures import preview, whole_preview
from latentae.training.randomness import StepRandomness
from latentae.training.run_folder import CONFIG, RankError, RunError, RunFolder
from latentae.training.signals import RunStopped, StopSignals
from latentae.training.speed import TorchSettings
from latentae.training.summary import describe
from latentae.training.update import update

_VALIDATION_TRUNK = "alex"
_SKIPPED_SHOWN = 5


class Trainer:
    """A run of a config: builds everything, resumes from a checkpoint, trains, measures and exports.

    Args:
        config: a validated config.
        rehearsal: for a dry run: the run's folder is neither resumed from nor written to.

    Attributes:
        step: optimizer steps done so far.
        validation: the measurements at this step, by their names in the log; empty if there are none.

    Raises:
        ValueError: an output folder, images or a checkpoint that cannot be used.
        WeightsNotFoundError: the weights of the perceptual loss's network cannot be loaded.
    """

    def __init__(self, config: RunConfig, *, rehearsal: bool = False) -> None:
        # The folder, the processes and their devices.
        self.config = config = apply_launcher_settings(config)
        self.folder = RunFolder(Path(config.output_dir))
        self.folder.check(config)
        self.config = config = settle_precision(config, self.folder.recorded_precision())
        self.torch_settings = TorchSettings.read()
        self.accelerator = create_accelerator(config)
        self.device = self.accelerator.device
        self.lock = FolderLock(self.folder.root, "output_dir")
        if not rehearsal:
            self.lock.acquire(self.accelerator.print)
            if distributed.is_main():
                self.folder.clear_leftovers()
        # The losses, the images, the networks, and what watches over them.
        self.step = 0
        self.seconds = 0.0
        self.saved_step: int | None = None
        self.validation: dict[str, float] = {}
        with distributed.main_first():  # the first rank downloads the weights, the others find them
            bfloat16 = self.accelerator.mixed_precision == "bf16"
            objective = build.build_objective(config.loss, bfloat16=bfloat16).to(self.device)
            self.validation_lpips = build.build_lpips(_VALIDATION_TRUNK).to(self.device)
        self.images = open_images(
            config,
            gather=gather_object,
            say=self.accelerator.print,
            notes=None if rehearsal else self.folder.shards,
            before=held_out_before(self.folder, self.folder.resume_of(config)),
        )
        self.networks = build_networks(config, self.accelerator, objective)
        self.guard = Guard(gather_object, GRADIENT_LOSSES)
        self.codes = monitor_codebook(self.networks.quantizer, config, self.images.training)
        self.meter = Meter()
        self.accelerator.register_for_checkpointing(self.guard, self.codes, self.meter)
        # Resume: from a checkpoint, or else from a pretrained model.
        if not rehearsal:
            self._resume()
            data_record = compare_data(
                self.images,
                self.folder,
                config,
                continued=self.saved_step is not None,
                say=self.accelerator.print,
            )
        pretrained = self.networks.pretrained
        if pretrained is not None:
            if self.step == 0:
                pretrained.take_up()
            else:
                pretrained.check_moved()
        if self.networks.step.adversary is not None:
            self.networks.step.adversary.check()
        teacher = self.networks.step.teacher
        if teacher is not None:
            teacher.check(self.networks.autoencoder)
            teacher.hand_over_scale(self.networks.autoencoder, self.networks.ema.model)
        if isinstance(self.images.training, ImagesWithLatents):
            self.images.training.check_model(self.networks.autoencoder)
        if rehearsal:
            return
        # Write what belongs to the run before its first step.
        if distributed.is_main():
            self.folder.create(config, data_record)
            write_json(self.folder.held_out, self.images.held_out.to_dict())
            self.folder.forget_after(self.step)
            if pretrained is not None:
                pretrained.write(self.folder.root)
        self.lock.acquire(self.accelerator.print)  # if there was no folder before

    def _resume(self) -> None:
        """Loads the run's newest checkpoint, or the one that `resume` names."""
        resume = self.folder.resume_of(self.config)
        path = choose_checkpoint(self.folder, resume, self.accelerator.print)
        if path is not None:
            own = self.folder.owns(path)
            with keep_settings([learner.optimizer for learner in self.networks.learners]):
                progress = load_checkpoint(path, self.accelerator.load_state, self._global_batch(), own=own)
            self.step, self.seconds = progress["step"], progress["seconds"]
            if own:
                self.saved_step, self.validation = self.step, progress["validation"]
            # A checkpoint saved within a step, after a fault, begins that step again.
            self.accelerator.step = self.step * self.config.gradient_accumulation_steps

    def fit(self) -> dict[str, Any]:
        """Trains to ``max_steps``, measures and exports. Returns the contents of ``summary.json``.

        Raises:
            RunError: the run cannot continue. Earlier checkpoints are untouched.
            RunStopped: a signal asked it to stop, and it is saved.
        """
        config = self.config
        self.lock.acquire(self.accelerator.print)  # unless it is held: the end of a fit releases it
        # Open the log, and say what this run is.
        with needing_disk(self.folder.root):
            self.accelerator.init_trackers("latentae", config={"config": dump_config(config)})
        recorder = Recorder(
            self.folder,
            step=self.step,
            max_steps=config.max_steps,
            images_per_step=self._global_batch() * config.gradient_accumulation_steps,
            track=partial(track, self.accelerator),
            enabled=distributed.is_main(),
        )
        for sentence in [
            self._describe_start(),
            self.images.places,
            *self.networks.describe(),
            *config_warnings(config),
        ]:
            recorder.say(sentence)
        # Train and finish. After an error that is no bug, save what there is.
        try:
            with StopSignals(process_group_timeout(config)) as signals:
                self._train(recorder, signals)
                signals.leave_at_once(self._how_to_continue())
                summary = self._finish()
        except NoMeasurementError as error:
            self._save_checkpoint()
            reason = f"the averaged weights cannot be measured: {error}"
            raise RunError(f"{reason}\nthe run is saved at step {self.step}. {RETRY}") from error
        except (BrokenImageError, WorkerDiedError) as error:
            reason = str(error).strip().splitlines()[-1]
            if distributed.world_size() > 1:  # the others are within the step, and could not save with it
                raise RankError(f"{reason}\nthe same command continues from the last checkpoint") from error
            self._save_checkpoint()
            raise RunError(f"{reason}\n{self._how_to_continue()}") from error
        finally:
            recorder.close()
            self.torch_settings.restore()
            self.lock.release()
        self.accelerator.end_training()
        recorder.say("\n" + describe(self.folder, summary))
        return summary

    def _train(self, recorder: Recorder, signals: StopSignals) -> None:
        """Makes the remaining optimizer steps, and what is due between them."""
        config = self.config
        watch = AdversaryWatch()
        batches = self.batches()
        started = time.perf_counter() - self.seconds
        while self.step < config.max_steps:
            self.optimizer_step(batches, self.meter)
            self.seconds = time.perf_counter() - started
            recorder.advance()
            self.validation = {}
            # Log, draw and save what is due.
            logs = self._due(config.log_every) or self._due(config.validate_every)
            if logs or self._due(config.checkpoint_every):
                self._report_skipped(recorder)
            if logs:
                self._log(recorder, watch)
                self._report_broken(recorder)
            if self._due(config.sample_every):
                self._save_preview(recorder)
            if self._due(config.checkpoint_every):
                self._save_checkpoint()
            # Stop if a signal asked for it.
            stop = signals.asked()
            if stop is not None:
                self._report_skipped(recorder)
                self._save_checkpoint()
                self.accelerator.end_training()
                raise RunStopped(f"stopped by {stop}: {self._how_to_continue()}")

    def _log(self, recorder: Recorder, watch: AdversaryWatch) -> None:
        """Writes a line of numbers, with those of validation if it is due, and warnings."""
        means = self.meter.read()
        if self._due(self.config.validate_every):
            with recorder.untimed():
                self.validation = validate(
                    self.networks.ema.model,
                    self.images.validation,
                    self.validation_lpips,
                    batch_size=self.config.batch_size,
                    device=self.device,
                    num_workers=self.config.data.num_workers,
                    alpha=self.config.data.alpha,
                    note_broken=self.images.broken.add,
                )
        codes = self.codes.read(final=self.step == self.config.max_steps)
        skipped = {"skipped_steps": self.guard.skipped}
        recorder.write(self.step, means | codes.numbers | self.validation | skipped, codes.histograms)
        for warning in (watch.see(means), codes.warning):
            recorder.say(warning)

    def _how_to_continue(self) -> str:
        if self.step == 0:
            return "no step was made yet; the same command starts again"
        return f"the run is saved at step {self.step}; the same command continues from there"

    def _report_skipped(self, recorder: Recorder) -> None:
        """Names the updates that were not made. Raises RunError, on all ranks, after too many in a row."""
        skipped = self.guard.report()
        for update_not_made in skipped[:_SKIPPED_SHOWN]:
            recorder.say(str(update_not_made))
        if len(skipped) > _SKIPPED_SHOWN:
            recorder.say(f"and {len(skipped) - _SKIPPED_SHOWN} more steps since the last log line")
        if self.guard.longest >= self.config.guard.max_consecutive:
            self._save_checkpoint()
            with self.accelerator.autocast():
                model, alpha = self.networks.autoencoder, self.config.data.alpha
                own = str(diagnose(model, downscale(self.latest_images, model.upscale, alpha=alpha)))
            why = explain(skipped, gather_object([own]), self.accelerator.scaler)
            saved = f"the run is saved at step {self.step}, its weights as they were before. {RETRY}"
            count = f"{self.guard.longest} updates in a row were not made"
            raise RunError(f"{count}, as many as guard.max_consecutive allows\n{why}\n{saved}")

    def _describe_start(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.networks.autoencoder.parameters())
        begin = f"continuing at step {self.step}" if self.step else "starting"
        form = {"bf16": " in bfloat16", "fp16": " in float16"}.get(self.accelerator.mixed_precision, "")
        return (
            f"{begin}: {type(self.networks.autoencoder).__name__}, {parameters / 1e6:.2f} M parameters, "
            f"f{self.networks.autoencoder.downsampling_factor}; {self.images.describe()}; "
            f"{distributed.world_size()} x {self.device.type}{form}"
        )

    def batches(self) -> Iterator[Batch]:
        """Returns this rank's micro-batches from this step on. The first of a run start the codebook."""
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
        fresh = self.step == 0 and self.networks.pretrained is None
        if fresh and self.networks.quantizer is not None:
            generator = self.randomness().generator("codebook")
            batches = start_codebook(self.networks.autoencoder, batches, generator, self.device)
        return batches

    def optimizer_step(self, batches: Iterator[Batch], meter: Meter) -> None:
        """Adds the gradients of all micro-batches of one optimizer step, and makes the update."""
        networks = self.networks
        # The gradients.
        for micro_batch in range(self.config.gradient_accumulation_steps):
            batch = next(batches)
            self.images.broken.add(batch["broken"])
            self.latest_images = batch["images"].to(self.device, non_blocking=True)
            moments = batch.get("latents")
            if moments is not None:
                moments = moments.to(self.device, non_blocking=True)
            with self.accelerator.accumulate(*(learner.module for learner in networks.learners)):
                result = networks.step(self.latest_images, self.randomness(micro_batch), moments)
            self.guard.watch(result.losses, batch["names"])
            meter.add(result.losses)
            self.codes.add(result.indices)
        # The update, if the guard accepts it.
        self.step += 1
        done = update(
            networks.learners,
            self.step - 1,
            self.accelerator.scaler,
            self.config.max_grad_norm,
            partial(self.guard.accept, self.step),
        )
        # Everything else that follows the weights takes part only in an accepted update.
        meter.add(done.numbers)
        meter.after_update(done.accepted)
        self.codes.after_update(self.step, done.accepted)
        networks.after_update(self.step, self.randomness().generator("codebook"), done.accepted)

    def randomness(self, micro_batch: int = 0) -> StepRandomness:
        """Returns the random numbers of a micro-batch of this step, for this rank."""
        return StepRandomness(
            self.config.seed,
            self.step,
            micro_batch,
            distributed.rank(),
            distributed.world_size(),
            self.device,
        )

    def _due(self, every: int | None) -> bool:
        """Whether something is due that happens every so many steps and at the end; None: never."""
        return every is not None and (self.step % every == 0 or self.step == self.config.max_steps)

    def _global_batch(self) -> int:
        return self.config.batch_size * distributed.world_size()

    def _report_broken(self, recorder: Recorder) -> None:
        try:
            sentence = self.images.broken.report()
        except TooManyBrokenImagesError as error:
            self._save_checkpoint()
            raise RunError(f"{error}\nthe run is saved at step {self.step}") from error
        recorder.say(sentence)

    def _save_preview(self, recorder: Recorder) -> None:
        if distributed.is_main():
            images = self.images.preview.to(self.device)
            try:
                picture = preview(
                    self.networks.ema.model,
                    images,
                    posterior=self.config.loss.kl is not None,
                    alpha=self.config.data.alpha,
                )
                self._save_picture("samples", picture, self.folder.sample(self.step))
            except ValueError as error:  # a codebook refuses NaN; do not leave the other ranks waiting
                recorder.say(f"no sample picture of step {self.step}: {error}")
            shares = self.codes.shares()
            if shares is not None:
                drawn = code_usage(to_float64_on_cpu(shares).numpy())
                self._save_picture("codes", drawn.picture, self.folder.codes(self.step))

    def _save_whole_images(self) -> None:
        """Draws whole validation images beside their reconstructions by the averaged weights.

        The run is complete by then. So it does not fail if the model cannot take these images.
        """
        images = load_whole_images(self.images.validation, alpha=self.config.data.alpha)
        if not images:
            return
        try:
            on_device = [image.to(self.device) for image in images]
            picture = whole_preview(self.networks.ema.model, on_device, alpha=self.config.data.alpha)
        except Exception as error:
            if is_out_of_memory(error):
                reason = describe_lack_of_memory(error)
            elif isinstance(error, ValueError):  # such as an image that is smaller than one latent
                reason = str(error)
            else:
                raise
            self.accelerator.print(f"no picture of whole images: {reason}")
            return
        self._save_picture("whole_images", picture, self.folder.whole(self.step))

    def _save_picture(self, name: str, picture: Picture, path: Path) -> None:
        with needing_disk(path):
            save_png(picture, path)
            track_picture(self.accelerator, name, picture, self.step)

    def _save_checkpoint(self) -> None:
        # Before its first step a run has learned nothing that its seed does not give again.
        if self.step in (0, self.saved_step):
            return
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "global_batch": self._global_batch(),
            "validation": self.validation,
        }
        keep, best_metric = self.config.keep_checkpoints, self.config.best_metric
        save_checkpoint(self.folder, self._save_state, progress, keep, best_metric)
        self.saved_step = self.step

    def _save_state(self, checkpoint: str) -> None:
        """Writes this rank's part of a checkpoint to a folder."""
        self.accelerator.save_state(checkpoint)
        if distributed.is_main():
            write_text(Path(checkpoint, CONFIG), dump_config(self.config))

    def _finish(self) -> dict[str, Any]:
        """Calibrates, measures and exports the averaged weights. Returns the contents of ``summary.json``."""
        numbers = calibrate_and_measure(
            self.networks.ema.model,
            sample_dataset(self.images.training),
            self.images.validation,
            self.validation_lpips,
            self.config,
            device=self.device,
            say=self.accelerator.print,
            # If images cannot be read, measure again: only a measurement says how many were left out.
            measured=None if self.images.broken.known else self.validation,
            note_broken=self.images.broken.add,
        )
        try:
            sentence = self.images.broken.report()
        except TooManyBrokenImagesError as error:  # training is over, so this is no reason to stop
            sentence = str(error)
        if sentence is not None:
            self.accelerator.print(sentence)
        summary = {"step": self.step, **numbers, "seconds": round(self.seconds, 1)}
        if distributed.is_main():
            export_run(self.networks.ema.model, self.folder)
            with needing_disk(self.folder.summary):
                write_json(self.folder.summary, summary)
            self._save_whole_images()
        distributed.barrier()
        return summary
