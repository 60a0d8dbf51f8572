"""The probe: the same small denoiser trained on each model's latents, and what it generates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch

from latentae import distributed
from latentae.evaluation.features import Measures, open_measures
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.models import NamedModel, channels_of, factor_of, open_models
from latentae.models import load_autoencoder
from latentae.probe.denoiser import common_token_side
from latentae.probe.features import reference_features
from latentae.probe.folder import RESULTS, ProbeFolder
from latentae.probe.generation import GenerationEvaluator
from latentae.probe.model_probe import ModelProbe
from latentae.probe.pipeline import PipelineAutoencoder, pipeline_autoencoder
from latentae.probe.report import ModelResult, ProbeResults, write_report
from latentae.probe.request import ProbeImages, ProbeRequest, open_images
from latentae.report.results import Value

Say = Callable[[str], None]


def probe(
    request: ProbeRequest,
    device: torch.device,
    say: Say = lambda text: None,
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
    request.check()
    folder = ProbeFolder(request.out)
    subjects = open_models(request.models, "float32", device, open_model, families=request.families)
    sides = {subject.name: _latent_side(subject, request.image_size) for subject in subjects}
    decoders = {subject.name: _decoder(subject) for subject in subjects}
    token_side = common_token_side(list(sides.values()), request.size.largest_side)
    images = open_images(request, channels_of(subjects[0]))
    if measures is None:
        measures = open_measures(device, channels=channels_of(subjects[0]), inception=request.inception)
    folder.claim(_settings(request, subjects, images, measures))
    if folder.is_complete:
        say(f"the probe in {request.out} is complete")
        return ProbeResults.from_dict(json.loads((request.out / RESULTS).read_text(encoding="utf-8")))
    counts = f"{len(images.training)} training images, {len(images.held_out)} held out"
    say(f"{counts}; {request.steps} steps per model")
    say(images.description)
    evaluator = _evaluator(request, images, measures, device)
    job = ModelProbe(request, folder, images, evaluator, token_side, device, say)
    models = {subject.name: job.run(subject, decoders[subject.name]) for subject in subjects}
    results = ProbeResults(
        settings=_settings(request, subjects, images, measures),
        models=models,
        reconstruction=_reconstruct(request, subjects, images, measures, device, say),
        remarks=[*measures.remarks, *_remarks(len(evaluator.indices), request.samples, models)],
    )
    write_report(results, request.out)
    return results


def _evaluator(
    request: ProbeRequest, images: ProbeImages, measures: Measures, device: torch.device
) -> GenerationEvaluator:
    real, indices = reference_features(
        images.reference,
        measures.features,
        request.out / "reference.safetensors",
        device,
        request.num_workers,
    )
    return GenerationEvaluator(images, measures.features, real, indices, request, device)


def _decoder(subject: NamedModel) -> PipelineAutoencoder:
    try:
        return pipeline_autoencoder(subject.autoencoder)
    except ValueError as error:
        raise ValueError(f"{subject.name}: {error}") from error


def _latent_side(subject: NamedModel, image_size: int) -> int:
    factor = factor_of(subject)
    if image_size % factor:
        raise ValueError(
            f"image_size is {image_size}, but {subject.name} needs a multiple of {factor}, the pixels per "
            "latent position"
        )
    return image_size // factor


def _settings(
    request: ProbeRequest, subjects: list[NamedModel], images: ProbeImages, measures: Measures
) -> dict[str, Any]:
    return {
        **request.settings(),
        "models": {
            subject.name: hashlib.sha256(subject.identity.encode(errors="surrogateescape")).hexdigest()
            for subject in subjects
        },
        "training_images": len(images.training),
        "training_sha256": images.reference.list_sha256,
        "held_out_images": len(images.held_out),
        "networks": measures.identities,
    }


def _reconstruct(
    request: ProbeRequest,
    subjects: list[NamedModel],
    images: ProbeImages,
    measures: Measures,
    device: torch.device,
    say: Say,
) -> dict[str, dict[str, Value]]:
    """Measures reconstructions of the held-out images by pixels and rates, not by features."""
    work = request.out / ".measured"
    evaluation = Evaluation(
        images.measured,
        Measures(lpips=measures.lpips),
        Settings(batch_size=16, num_workers=request.num_workers, cycle_images=0),
        work,
        request.data,
        device,
        say,
    )
    evaluation.measure(subjects)
    return {subject.name: evaluation.result(subject).metrics for subject in subjects}


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
