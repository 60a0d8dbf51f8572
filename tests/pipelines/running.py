"""Runs a pipeline and writes down what passed between it and its autoencoder."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from tests.pipelines.autoencoders import OURS, has_codes, tiny
from tests.pipelines.cases import CASES, SIZE, Case


@dataclass
class Run:
    """What a call of a pipeline returned, and what its parts saw.

    Attributes:
        images: [B, C, H, W] in [0, 1].
        seen: the first argument of each call of the denoiser.
        stepped: what each step of the scheduler returned.
        decoded: what the autoencoder was asked to decode.
    """

    images: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    seen: list[torch.Tensor] = field(default_factory=list)
    stepped: list[torch.Tensor] = field(default_factory=list)
    decoded: list[torch.Tensor] = field(default_factory=list)


def picture() -> torch.Tensor:
    """[1, 3, SIZE, SIZE] in [0, 1]."""
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def left_half() -> torch.Tensor:
    """[1, 1, SIZE, SIZE], one where an image is to be painted anew."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    return mask


def run(case: Case, pipeline: DiffusionPipeline, **arguments: Any) -> Run:
    """Calls the pipeline as its case says; ``arguments`` come on top."""
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0), **case.arguments}
    if case.image:
        given["image"] = picture()
    if case.mask:
        given["mask_image"] = left_half()
    record = Run()
    autoencoder, scheduler = getattr(pipeline, case.part), pipeline.scheduler
    originals = autoencoder.decode, scheduler.step

    def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        record.decoded.append(latents)
        return originals[0](latents, *args, **kwargs)

    def step(*args: Any, **kwargs: Any) -> Any:
        result = originals[1](*args, **kwargs)
        record.stepped.append(result[0])
        return result

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        record.seen.append(
            given if isinstance(given, torch.Tensor) else torch.cat(given, dim=1).transpose(0, 1)
        )

    hook = getattr(pipeline, case.denoiser).register_forward_pre_hook(see, with_kwargs=True)
    autoencoder.decode, scheduler.step = decode, step
    try:
        images = pipeline(output_type="np", **(given | arguments)).images
    finally:
        hook.remove()
        del autoencoder.decode, scheduler.step
    record.images = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
    return record


def built(case_name: str, autoencoder_name: str, **config: Any) -> DiffusionPipeline:
    """The pipeline of a case around a tiny autoencoder with random weights."""
    case = CASES[case_name]
    autoencoder = tiny(autoencoder_name, **(case.config | config))
    if case.in_pieces:
        autoencoder.enable_slicing()
        autoencoder.enable_tiling()
    return case.build(autoencoder)


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each of the cases with each autoencoder of ours that it can use."""
    return [(n, a) for n in names for a in OURS if has_codes(a) or not CASES[n].of_codes]


def outcome(case_name: str, autoencoder_name: str) -> str:
    """A cell of the table: `works`, the error, or `-` where a pipeline asks for codes that a model lacks."""
    case = CASES[case_name]
    if case.of_codes and not has_codes(autoencoder_name):
        return "-"
    try:
        images = run(case, built(case_name, autoencoder_name)).images
    except Exception as error:  # whatever it is, it is what the table is to show
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "works" if images.isfinite().all() and images.std() > 0 else "no image"
