"""One model's part of a probe: its latents, its denoiser, and what that generates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from latentae.evaluation.subject import Subject
from latentae.probe.batches import LatentBatches
from latentae.probe.denoiser import build_denoiser, count_parameters
from latentae.probe.folder import ProbeFolder
from latentae.probe.generation import Judge, draw_labels
from latentae.probe.images import ProbeImages
from latentae.probe.latents import ProbeLatents, cache_latents
from latentae.probe.pipeline import PipelineAutoencoder, build_pipeline
from latentae.probe.report import SHOWN
from latentae.probe.request import ProbeRequest
from latentae.probe.results import ModelResult
from latentae.probe.training import DenoiserTraining, TrainingSettings
from latentae.probe.validation import FlowValidation

_STRIDE = 20  # steps between two looks at the clock
_SAVE_EVERY = 60.0  # seconds between two writings of a training's state


@dataclass(frozen=True)
class ModelProbe:
    """Probes one model after the other, all in the same way.

    Attributes:
        request: what was asked for.
        folder: where to write.
        images: real ones.
        judge: measures what is generated.
        steps: of each training.
        token_side: tokens along a side of each denoiser.
        device: where everything runs.
        say: told of progress.
    """

    request: ProbeRequest
    folder: ProbeFolder
    images: ProbeImages
    judge: Judge
    steps: int
    token_side: int
    device: torch.device
    say: Callable[[str], None]

    def run(self, subject: Subject, decoder: PipelineAutoencoder) -> ModelResult:
        """Caches, trains, generates and measures, but for what an earlier run has finished.

        Raises:
            ValueError: latents that cannot be trained on.
        """
        own = self.folder.model(subject.name)
        finished = own.result()
        if finished is not None:
            self.say(f"{subject.name}: finished earlier")
            return ModelResult.from_dict(finished)
        latents = self._latents(subject, decoder)
        training = self._training(latents, decoder)
        self._train(training, subject.name)
        denoiser = training.denoiser
        pipeline = build_pipeline(denoiser, decoder.vae.to(self.device), latents.label_names)
        self.say(f"{subject.name}: generating and measuring {self.request.samples} pictures")
        labels = draw_labels(latents.labels, self.request.samples, self.request.seed)
        generated = self.judge(pipeline, subject, labels, own.root)
        own.write_pipeline(pipeline)
        last = training.curve[-1]
        losses = {"flow_loss": last.validation_loss, "relative_flow_loss": last.relative_loss}
        shape = latents.training.latent_shape
        result = ModelResult(
            path=subject.path,
            class_name=type(subject.model).__name__,
            sha256=subject.sha256,
            latent_shape=list(shape),
            patch_size=shape[1] // self.token_side,
            parameters=count_parameters(denoiser),
            metrics=generated.metrics | losses,
            curve=training.curve,
            sample_seconds=generated.sample_seconds,
            pictures={
                kind: f"{subject.name}/{kind}.png" for kind in SHOWN if (own.root / f"{kind}.png").is_file()
            },
            remarks=decoder.remarks,
        )
        own.finish(result.to_dict())
        return result

    def _latents(self, subject: Subject, decoder: PipelineAutoencoder) -> ProbeLatents:
        self.say(f"{subject.name}: encoding")
        model: Any = subject.model
        place = self.folder.model(subject.name).latents
        try:
            return cache_latents(
                model, self.images, place, self.request, self.device, decoder.offset, self.say
            )
        except ValueError as error:
            raise ValueError(f"{subject.name}: {error}") from error

    def _training(self, latents: ProbeLatents, decoder: PipelineAutoencoder) -> DenoiserTraining:
        request = self.request
        shape = latents.training.latent_shape
        return DenoiserTraining(
            denoiser=build_denoiser(shape, self.token_side, request.size, request.seed).to(self.device),
            batches=LatentBatches(latents.training, request.batch_size, request.seed, decoder.offset),
            validation=FlowValidation(latents.held_out, latents.variance, request.seed),
            settings=TrainingSettings(self.steps, request.seed, request.learning_rate),
            device=self.device,
            has_labels=latents.labels is not None,
        )

    def _train(self, training: DenoiserTraining, name: str) -> None:
        own = self.folder.model(name)
        state = own.load_state()
        if state is not None:
            training.load_state_dict(state)
            self.say(f"{name}: going on after step {training.step}")
        said, saved = len(training.curve), time.monotonic()
        while not training.is_done:
            training.advance(_STRIDE)
            if training.is_done or time.monotonic() - saved >= _SAVE_EVERY:
                own.save_state(training.state_dict())
                saved = time.monotonic()
            if len(training.curve) > said:
                said, point = len(training.curve), training.curve[-1]
                self.say(
                    f"{name}: step {point.step} of {self.steps}, held-out loss {point.validation_loss:.4f} "
                    f"({point.relative_loss:.3f} of what is known without learning), {point.seconds:.0f} s"
                )
        training.use_average()
