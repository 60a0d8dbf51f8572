"""Probes one model: caches its latents, trains a denoiser on them, and measures what it generates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentae.evaluation.models import NamedModel
from latentae.latents.cache import LatentDataset, encode_dataset
from latentae.models import LatentAutoencoder
from latentae.probe.denoiser import NULL_LABEL, build_denoiser, count_parameters
from latentae.probe.flow import FlowValidation, LatentBatch
from latentae.probe.folder import ProbeFolder
from latentae.probe.generation import GenerationEvaluator, draw_labels
from latentae.probe.pipeline import PipelineAutoencoder, build_pipeline, check_labels
from latentae.probe.report import SHOWN, ModelResult
from latentae.probe.request import ProbeImages, ProbeRequest
from latentae.probe.training import DenoiserTraining, LatentBatches, TrainingSettings, collect

_MOST_MEASURED = 2048  # latents whose variance is taken
# A smaller variance of a channel is only rounding; that of all channels together is about 1.
_NO_VARIANCE = 1e-8
_STRIDE = 20  # steps between two looks at the clock
_SAVE_EVERY = 60.0  # seconds between two saved states


@dataclass(frozen=True)
class ProbeLatents:
    """The latents that a denoiser is trained and measured on.

    Attributes:
        training: latents of the training images; the posteriors are sampled anew in each epoch.
        held_out: latents of the held-out images, one sample each.
        labels: int64 [n] of the training images; None where the probe has no classes.
        label_names: of the classes.
        variance: [c] of the training latents' channels.
    """

    training: LatentDataset
    held_out: LatentBatch
    labels: Tensor | None
    label_names: list[str] | None
    variance: Tensor


def cache_latents(
    model: LatentAutoencoder,
    images: ProbeImages,
    folder: Path,
    request: ProbeRequest,
    device: torch.device,
    offset: Tensor,
    say: Callable[[str], None],
) -> ProbeLatents:
    """Encodes the images that are not cached yet, and opens the caches.

    Args:
        offset: [c] added to the held-out latents; ``LatentBatches`` adds it to the others.

    Raises:
        ValueError: images or a model that cannot be used, or latents that do not vary.
    """
    opened = []
    for name, source in (("training", images.training), ("held_out", images.held_out)):
        encode_dataset(
            model,
            source,
            folder / name,
            annotations=not request.unconditional,
            batch_size=request.batch_size,
            workers=request.num_workers,
            image_size=request.image_size,
            device=device,
            say=say,
            flips=request.flips and name == "training",
        )
        opened.append(LatentDataset(folder / name, seed=request.seed))
    training, held_out = opened
    count = min(len(training), _MOST_MEASURED)
    spread = [position * len(training) // count for position in range(count)]
    variance = collect(training, spread).latents.var(dim=(0, 2, 3))
    if not bool((variance > _NO_VARIANCE).all()):
        constant = (variance <= _NO_VARIANCE).nonzero().flatten().tolist()
        raise ValueError(f"its latent channel(s) {constant} do not vary over the images: they store nothing")
    labels = training.labels
    if training.num_classes is not None:
        check_labels(training.num_classes)
    batch = collect(held_out, list(range(len(held_out))), offset)
    if labels is not None:
        batch = LatentBatch(batch.latents, _same_classes(held_out, training, batch.labels))
    return ProbeLatents(training, batch, labels, training.label_names, variance)


def _same_classes(held_out: LatentDataset, training: LatentDataset, labels: Tensor) -> Tensor:
    """Returns the held-out labels in the numbers of the training data; ``NULL_LABEL`` for unknown classes."""
    if held_out.labels is None:
        return torch.full_like(labels, NULL_LABEL)
    if held_out.label_names == training.label_names:
        return torch.where(labels < (training.num_classes or 0), labels, NULL_LABEL)
    numbers = {name: number for number, name in enumerate(training.label_names or [])}
    names = held_out.label_names or []
    return torch.tensor(
        [
            numbers.get(names[label], NULL_LABEL) if label < len(names) else NULL_LABEL
            for label in labels.tolist()
        ]
    )


@dataclass(frozen=True)
class ModelProbe:
    """Probes each model in the same way.

    Attributes:
        request: the options.
        folder: of the probe.
        images: the real ones.
        evaluator: measures the generated images.
        token_side: tokens along a side of each denoiser.
        device: where everything runs.
        say: gets messages about progress.
    """

    request: ProbeRequest
    folder: ProbeFolder
    images: ProbeImages
    evaluator: GenerationEvaluator
    token_side: int
    device: torch.device
    say: Callable[[str], None]

    def run(self, subject: NamedModel, decoder: PipelineAutoencoder) -> ModelResult:
        """Caches, trains, generates and measures, unless an earlier run has finished this model.

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
        self.say(f"{subject.name}: generating and measuring {self.request.samples} images")
        labels = draw_labels(latents.labels, self.request.samples, self.request.seed)
        generated = self.evaluator.evaluate(pipeline, subject, labels, own.root)
        own.write_pipeline(pipeline)
        last = training.curve[-1]
        losses = {"flow_loss": last.validation_loss, "relative_flow_loss": last.relative_loss}
        shape = latents.training.latent_shape
        result = ModelResult(
            path=subject.path,
            class_name=type(subject.autoencoder).__name__,
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

    def _latents(self, subject: NamedModel, decoder: PipelineAutoencoder) -> ProbeLatents:
        self.say(f"{subject.name}: encoding")
        model: Any = subject.autoencoder
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
            settings=TrainingSettings(request.steps, request.seed, request.learning_rate),
            device=self.device,
            has_labels=latents.labels is not None,
        )

    def _train(self, training: DenoiserTraining, name: str) -> None:
        own = self.folder.model(name)
        state = own.load_state()
        if state is not None:
            training.load_state_dict(state)
            self.say(f"{name}: continues after step {training.step}")
        said, saved = len(training.curve), time.monotonic()
        while not training.is_done:
            training.advance(_STRIDE)
            if training.is_done or time.monotonic() - saved >= _SAVE_EVERY:
                own.save_state(training.state_dict())
                saved = time.monotonic()
            if len(training.curve) > said:
                said, point = len(training.curve), training.curve[-1]
                self.say(
                    f"{name}: step {point.step} of {self.request.steps}, held-out loss "
                    f"{point.validation_loss:.4f} (relative {point.relative_loss:.3f}), {point.seconds:.0f} s"
                )
        training.use_average()
