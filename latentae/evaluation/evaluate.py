"""Models side by side on the same images, as a report: what ``latentae evaluate`` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latentae import distributed
from latentae.data import describe_source
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.description import describe_model, describe_protocol
from latentae.evaluation.images import open_images
from latentae.evaluation.measures import open_measures
from latentae.evaluation.measuring import Evaluation
from latentae.evaluation.models import channels_of, factor_of, open_subjects
from latentae.evaluation.protocol import protocol_called
from latentae.evaluation.request import RESULTS, WORK, Request
from latentae.evaluation.worst import choose_pictures, save_pictures
from latentae.models import load_autoencoder
from latentae.report.evaluation import write_report
from latentae.report.results import Results


def evaluate(
    request: Request,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
    open_model: Callable[[str], Any] = load_autoencoder,
) -> Results:
    """Measures the models and writes the report; every rank must call it, and each returns the results.

    An evaluation that was interrupted goes on where it stopped.

    Args:
        say: told of progress, on every rank.
        open_model: gives the model of a path, to measure what ``load_autoencoder`` does not open. It must
            have what ``LatentAutoencoder`` has of ``config``, ``downsampling_factor`` and
            ``latents_channels``, and return an ``AutoencoderOutput``.

    Raises:
        ValueError: a model, the data or an option that cannot be used, or a report that is there already;
            all of this before anything is measured.
    """
    request.check()
    distributed.barrier()  # nobody writes before everybody has looked
    split, source = open_images(
        request.data,
        request.split,
        image_column=request.image_column,
        dataset_config=request.dataset_config,
        value_range=request.value_range,
        max_pixels=request.max_pixels,
    )
    with distributed.main_first():  # the first rank fetches models and weights, the others find them
        subjects = open_subjects(request.models, request.precision, device, open_model)
        channels = channels_of(subjects[0])
        measures = open_measures(
            device, channels=channels, inception=request.inception, features=request.features
        )
    # What one model cannot take is left out for all.
    smallest_side = max(factor_of(subject) for subject in subjects)
    protocol = protocol_called(request.protocol)
    blocks = ImageBlocks(source, protocol, channels, request.limit, smallest_side)
    blocks.check()
    for remark in measures.remarks:
        say(remark)
    say(f"{len(blocks.indices)} of {len(source)} images of {request.data} ({split}), {request.protocol}")
    say(f"the images: {describe_source(source)}")
    work = request.out / WORK
    evaluation = Evaluation(blocks, measures, request.settings, work, _data(request, split), device, say)
    evaluation.measure(subjects)
    if distributed.is_main():
        say("joining the numbers")
        assembled = {subject.name: evaluation.result(subject) for subject in subjects}
        any_result = next(iter(assembled.values()))
        results = Results(
            protocol=describe_protocol(request, split, blocks, measures, any_result, device),
            models={name: result.metrics for name, result in assembled.items()},
            details={s.name: describe_model(s, assembled[s.name], measures) for s in subjects},
        )
        _remove_pictures(request.out)
        reasons = choose_pictures(assembled)
        results.pictures = save_pictures(reasons, blocks, subjects, assembled, request.out, device)
        write_report(results, request.out)
        shutil.rmtree(work)
    distributed.barrier()
    return results if distributed.is_main() else Results.load(request.out / RESULTS)


def _data(request: Request, split: str) -> str:
    # What is only sometimes given stands there only then, so that earlier measurements still count.
    limit = () if request.max_pixels is None else (request.max_pixels,)
    reading = (request.image_column, request.dataset_config, request.value_range, *limit)
    return f"{request.data} {split} {reading}"


def _remove_pictures(out: Path) -> None:
    """Those of an earlier report, and nothing else that someone may have put there."""
    for file in (out / "pictures").glob("[0-9]*.png"):
        file.unlink()
