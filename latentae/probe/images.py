"""The images of a probe: those trained on, those held out, and those measured against."""

from __future__ import annotations

from dataclasses import dataclass

from latentae.data import ImageSource, open_sources, take_evenly
from latentae.data.annotations import read_annotations
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.protocol import Protocol, protocol_called
from latentae.probe.request import ProbeRequest

_MOST_HELD_OUT = 512


@dataclass(frozen=True)
class ProbeImages:
    """The images; none is both trained on and held out.

    Attributes:
        training, held_out: the sources.
        reference: training images that pictures are measured against, spread evenly.
        measured: held-out images that reconstructions are measured on.
        protocol: how these are prepared.
        description: which splits they are, where they lie and what was left out; for people.
    """

    training: ImageSource
    held_out: ImageSource
    reference: ImageBlocks
    measured: ImageBlocks
    protocol: Protocol
    description: str = ""


def open_images(request: ProbeRequest, channels: int) -> ProbeImages:
    """The images that a probe asks for.

    Raises:
        ValueError: no such data, none of them readable, fewer than a batch, or no labels for guidance.
    """
    sources = open_sources(
        request.data,
        split=request.split,
        image_column=request.image_column,
        dataset_config=request.dataset_config,
        value_range=request.value_range,
        max_pixels=request.max_pixels,
    )
    training, held_out = sources.train, take_evenly(sources.validation, _MOST_HELD_OUT)
    if len(training) < max(request.batch_size, 4):
        raise ValueError(
            f"{request.data} has {len(training)} training images, fewer than a batch of "
            f"{request.batch_size}: choose a smaller --batch-size, or more images (4 at least)"
        )
    if request.guidance_scale > 1 and (request.unconditional or read_annotations(training).labels is None):
        raise ValueError(
            f"guidance_scale is {request.guidance_scale:g}, but there are no labels to be guided by: leave "
            "it out"
        )
    protocol = protocol_called(f"resize-{request.image_size}")
    reference = ImageBlocks(training, protocol, channels, request.reference_images)
    reference.check()
    measured = ImageBlocks(held_out, protocol, channels)
    measured.check()
    return ProbeImages(training, held_out, reference, measured, protocol, sources.description)
