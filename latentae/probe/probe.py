"""The probe: the same small denoiser trained on each model's latents, and what it generates."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.data.decode import check_alpha
from latentae.data.source import spread_evenly
from latentae.evaluation.features import Measures
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.models import NamedModel, channels_of, factor_of, open_models
from latentae.evaluation.networks import open_measures
from latentae.latents.cache import LatentDataset, encode_dataset
from latentae.lock import FolderLock
from latentae.models import load_autoencoder
from latentae.probe.denoiser import (
    NULL_LABEL,
    FlowValidation,
    LatentBatch,
    build_denoiser,
    common_token_side,
    count_parameters,
)
from latentae.probe.features import reference_features
from latentae.probe.folder import RESULTS, ModelFolder, ProbeFolder
from latentae.probe.generation import GenerationEvaluator, draw_labels
from latentae.probe.pipeline import PipelineAutoencoder, build_pipeline, check_labels, pipeline_autoencoder
from latentae.probe.report import SHOWN, ModelResult, ProbeResults, write_report
from latentae.probe.request import ProbeImages, ProbeRequest, open_images
from latentae.probe.training import DenoiserTraining, LatentBatches, TrainingSettings, collect
from latentae.report.results import Value

_MOST_MEASURED = 2048  # latents whose variance is taken
# A smaller variance of a channel is only rounding; that of all channels together is about 1.
_NO_VARIANCE = 1e-8
_STRIDE = 20  # steps between two looks at the clock
_SAVE_EVERY = 60.0  # seconds between two saved states


def probe(
    request: ProbeRequest,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
    open_model: Callable[[str], Any] = load_autoencoder,
    measures: Measures | None = None,
) -> ProbeResults:
    """Probes the models and writes the report. An interrupted probe continues where it stopped.

    Args:
        device: where everything runs.
        say: gets messages about progress.
        open_model: loads the model of a path.
        measures: the networks of the metrics; None: load those whose weights are available.

    Raises:
        ValueError: a model, the data or an option cannot be used, or the folder belongs to something else.
            Everything that can be checked without encoding images is checked before training.
    """
    if distributed.world_size() > 1:
        raise ValueError("a probe runs in one process: start it without a launcher")
    # Open the models, the images and the networks.
    request.check()
    folder = ProbeFolder(request.out)
    models = open_models(request.models, "float32", device, open_model, families=request.families)
    sides = [_latent_side(model, request.image_size) for model in models]
    decoders = [_decoder(model) for model in models]
    token_side = common_token_side(sides, request.size.largest_side)
    channels = channels_of(models[0])
    if request.alpha:
        check_alpha(channels, several=True)
    images = open_images(request, channels)
    if measures is None:
        measures = open_measures(device, channels=channels, inception=request.inception)

    # A folder is for one set of settings.
    settings = _settings(request, models, images, measures)
    request.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(request.out, "out").held(say):
        folder.claim(settings)
        if folder.is_complete:
            say(f"the probe in {request.out} is complete")
            return ProbeResults.from_dict(json.loads((request.out / RESULTS).read_text(encoding="utf-8")))
        counts = f"{len(images.training)} training images, {len(images.held_out)} held out"
        say(f"{counts}; {request.steps} steps per model")
        say(images.description)

        # Probe one model after the other.
        networks, kept = measures.features, request.out / "reference.safetensors"
        reading: Any = {"num_workers": request.num_workers, "alpha": request.alpha}
        real, indices = reference_features(images.reference, networks, kept, device, **reading)
        evaluator = GenerationEvaluator(images, networks, real, indices, request, device)
        job = ModelProbe(request, folder, images, evaluator, token_side, device, say)
        probed = {
            model.name: job.run(model, decoder) for model, decoder in zip(models, decoders, strict=True)
        }

        # Measure reconstructions of the held-out images too, by pixels and rates.
        evaluation = Evaluation(
            images.measured,
            Measures(lpips=measures.lpips),
            Settings(batch_size=16, num_workers=request.num_workers, cycle_images=0),
            request.out / ".measured",
            request.data,
            device,
            say,
            alpha=request.alpha,
        )
        evaluation.measure(models)
        reconstruction: dict[str, dict[str, Value]] = {m.name: evaluation.result(m).metrics for m in models}
        remarks = [*measures.remarks, *_remarks(len(indices), request.samples, probed)]
        results = ProbeResults(settings, probed, reconstruction, remarks)
        write_report(results, request.out)
        return results


def _settings(
    request: ProbeRequest, models: list[NamedModel], images: ProbeImages, measures: Measures
) -> dict[str, Any]:
    """Returns all that the results depend on."""
    identities = {model.name: model.identity.encode(errors="surrogateescape") for model in models}
    return {
        **request.settings(),
        "models": {name: hashlib.sha256(identity).hexdigest() for name, identity in identities.items()},
        "training_images": len(images.training),
        "training_sha256": images.reference.list_sha256,
        "held_out_images": len(images.held_out),
        "networks": measures.identities,
    }


def _decoder(model: NamedModel) -> PipelineAutoencoder:
    try:
        return pipeline_autoencoder(model.autoencoder)
    except ValueError as error:
        raise ValueError(f"{model.name}: {error}") from error


def _latent_side(model: NamedModel, image_size: int) -> int:
    factor = factor_of(model)
    if image_size % factor:
        raise ValueError(
            f"image_size is {image_size}, but {model.name} needs a multiple of {factor}, the pixels per "
            "latent position"
        )
    if model.fixed_size not in (None, image_size):
        raise ValueError(
            f"image_size is {image_size}, but {model.name} takes images of {model.fixed_size} pixels a side "
            f"alone: use --image-size {model.fixed_size}"
        )
    return image_size // factor


def _remarks(real: int, samples: int, models: dict[str, ModelResult]) -> list[str]:
    counts = {model.parameters for model in models.values()}
    spread = max(counts) / min(counts) - 1
    remarks = [
        f"distances compare {samples} generated images with {real} real ones: few for a network of 512 "
        "features or more, so all distances are too high and cannot be compared with published numbers"
    ]
    others = max(real - samples, real - real // 2)
    if 4 * others < 3 * real:
        remarks.append(
            f"FD, real compares with {others} images and the other distances with {real}, so it is too high "
            "beside them; the reconstructed images are among these, so their distance is too low"
        )
    if spread:
        remarks.append(
            f"the denoisers differ by {100 * spread:.1f} % in parameters, all of them in the first and last "
            "layer, since latents differ in channels and patches"
        )
    return remarks


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

    def run(self, model: NamedModel, decoder: PipelineAutoencoder) -> ModelResult:
        """Caches, trains, generates and measures, unless an earlier run has finished this model.

        Raises:
            ValueError: latents that cannot be trained on.
        """
        name, request = model.name, self.request
        own = self.folder.model(name)
        finished = own.result()
        if finished is not None:
            self.say(f"{name}: finished earlier")
            return ModelResult.from_dict(finished)

        # Encode the images.
        self.say(f"{name}: encoding")
        try:
            latents = self.cache_latents(model.autoencoder, decoder.offset, own)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

        # Train a denoiser on the latents.
        shape = latents.training.latent_shape
        training = DenoiserTraining(
            denoiser=build_denoiser(shape, self.token_side, request.size, request.seed).to(self.device),
            batches=LatentBatches(latents.training, request.batch_size, request.seed, decoder.offset),
            validation=FlowValidation(latents.held_out, latents.variance, request.seed),
            settings=TrainingSettings(request.steps, request.seed, request.learning_rate),
            device=self.device,
            has_labels=latents.labels is not None,
        )
        self._train(training, own, name)

        # Generate images by the trained denoiser, and measure them.
        pipeline = build_pipeline(training.denoiser, decoder.vae.to(self.device), latents.label_names)
        self.say(f"{name}: generating and measuring {request.samples} images")
        labels = draw_labels(latents.labels, request.samples, request.seed)
        generated = self.evaluator.evaluate(pipeline, model, labels, own.root)
        own.write_pipeline(pipeline)
        last = training.curve[-1]
        losses = {"flow_loss": last.validation_loss, "relative_flow_loss": last.relative_loss}
        result = ModelResult(
            path=model.path,
            class_name=type(model.autoencoder).__name__,
            sha256=model.sha256,
            latent_shape=list(shape),
            patch_size=shape[1] // self.token_side,
            parameters=count_parameters(training.denoiser),
            metrics=generated.metrics | losses,
            curve=training.curve,
            sample_seconds=generated.sample_seconds,
            pictures={kind: f"{name}/{kind}.png" for kind in SHOWN if (own.root / f"{kind}.png").is_file()},
            remarks=decoder.remarks,
        )
        own.finish(result.to_dict())
        return result

    def cache_latents(self, model: Any, offset: Tensor, own: ModelFolder) -> ProbeLatents:
        """Encodes the images that are not cached yet, and opens the caches.

        Args:
            model: the autoencoder.
            offset: [c] added to the held-out latents; ``LatentBatches`` adds it to the others.
            own: the model's folder.

        Raises:
            ValueError: images or a model that cannot be used, or latents that do not vary.
        """
        request = self.request
        opened = []
        for name, source in (("training", self.images.training), ("held_out", self.images.held_out)):
            encode_dataset(
                model,
                source,
                own.latents / name,
                annotations=not request.unconditional,
                batch_size=request.batch_size,
                workers=request.num_workers,
                image_size=request.image_size,
                device=self.device,
                say=self.say,
                flips=request.flips and name == "training",
                alpha=request.alpha,
            )
            opened.append(LatentDataset(own.latents / name, seed=request.seed))
        training, held_out = opened

        # The variance of the channels, which the loss is compared with.
        measured = spread_evenly(_MOST_MEASURED, len(training))
        variance = collect(training, measured).latents.var(dim=(0, 2, 3))
        constant = (~(variance > _NO_VARIANCE)).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"its latent channel(s) {constant} do not vary over the images: they store nothing"
            )

        # The held-out latents, with the labels of the training.
        if training.num_classes is not None:
            check_labels(training.num_classes)
        batch = collect(held_out, list(range(len(held_out))), offset)
        labels = training.labels
        if labels is not None:
            batch = LatentBatch(batch.latents, _same_classes(held_out, training, batch.labels))
        return ProbeLatents(training, batch, labels, training.label_names, variance)

    def _train(self, training: DenoiserTraining, own: ModelFolder, name: str) -> None:
        """Trains to the end, from the saved state if there is one, and takes the averaged weights."""
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


def _same_classes(held_out: LatentDataset, training: LatentDataset, labels: Tensor) -> Tensor:
    """Returns the held-out labels in the numbers of the training data; ``NULL_LABEL`` for unknown classes."""
    if held_out.labels is None:
        return torch.full_like(labels, NULL_LABEL)
    if held_out.label_names == training.label_names:
        return torch.where(labels < (training.num_classes or 0), labels, NULL_LABEL)
    numbers = {name: number for number, name in enumerate(training.label_names or [])}
    own = [numbers.get(name, NULL_LABEL) for name in held_out.label_names or []]
    return torch.tensor([own[label] if label < len(own) else NULL_LABEL for label in labels.tolist()])
