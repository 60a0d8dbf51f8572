"""Measures models side by side on the same images and writes the report: ``latentae evaluate``."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from latentae import __version__, distributed
from latentae.data import DataSelection, describe_source
from latentae.data.decode import check_alpha
from latentae.evaluation.assembly import Assembled, percentiles
from latentae.evaluation.blocks import ImageBlocks, Protocol, open_images, protocol_called
from latentae.evaluation.features import Measures
from latentae.evaluation.fit import check_teacher, describe_fit, scale_remedy
from latentae.evaluation.interpolation import SETTINGS
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.models import (
    PRECISIONS,
    NamedModel,
    add_teacher,
    channels_of,
    choose_families,
    factor_of,
    group_models,
    name_models,
    open_models,
)
from latentae.evaluation.networks import METRICS_OF, choose_weights, open_measures
from latentae.evaluation.pictures import choose_pictures, save_crops, save_pictures
from latentae.evaluation.single_block import IFID_NETWORK
from latentae.files import check_output_folder
from latentae.lock import FolderLock
from latentae.models import load_autoencoder
from latentae.report.evaluation import write_report
from latentae.report.results import ModelDetails, Results

RESULTS = "results.json"
"""The file that marks the folder of a finished report."""
WORK = ".measured"
"""Folder of the measurements, inside the report's folder until the report is finished."""
_PERCENTILE_METRICS = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "delta_e")


@dataclass(frozen=True)
class Request:
    """Says what to evaluate, on what, and where to write it.

    Attributes:
        models: what ``load_autoencoder`` opens; ``name=path`` gives a model a name.
        data: ``photos``, a path, or a dataset of the hub.
        out: folder of the report.
        split: of the data; None takes the validation split, else the test split, else the first.
        image_column, dataset_config, value_range, max_pixels: how to read the data, as ``open_source`` takes
            them.
        protocol: its name.
        limit: number of images at most, evenly spread; None measures all.
        precision: of the models' forward passes, not of the metrics.
        inception: file of Inception's weights; None searches for them.
        weights: files of the metrics' networks; see ``choose_weights``.
        ifid: whether images between latents are measured, which takes as long as one more decoding of all.
        groups: models that the report shows together: ``NAME=MODEL,MODEL`` each.
        alpha: whether the four channels of models and images are RGBA, which are measured as composites.
        features: whether distances between feature distributions are measured.
        overwrite: whether an existing report is replaced.
        teacher: the model whose denoiser shall be kept: the name of one of ``models``, or what
            ``load_autoencoder`` opens. It is measured too, and each other model beside it.
        families: set the scale of latents beside a teacher; see ``choose_families``.
        settings: how it runs.
    """

    models: Sequence[str]
    data: str
    out: Path
    split: str | None = None
    image_column: str | None = None
    dataset_config: str | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int | None = None
    protocol: str = "imagenet-256"
    limit: int | None = None
    precision: str = "float32"
    inception: Path | None = None
    weights: Sequence[str] = ()
    ifid: bool = False
    groups: Sequence[str] = ()
    features: bool = True
    alpha: bool = False
    overwrite: bool = False
    teacher: str | None = None
    families: Sequence[str] = ()
    settings: Settings = field(default_factory=Settings)

    @property
    def selection(self) -> DataSelection:
        """The images; an empty split is for ``open_images`` to choose."""
        reading = (self.image_column, self.dataset_config, self.value_range, self.max_pixels)
        return DataSelection(self.data, self.split or "", *reading)

    @property
    def measured(self) -> list[str]:
        """The models, and the teacher if it is not one of them."""
        return list(self.models) if self.teacher is None else add_teacher(self.models, self.teacher)[0]

    def find_teacher(self, models: Sequence[NamedModel]) -> NamedModel | None:
        """Returns the teacher among the opened models; None where none was asked for."""
        if self.teacher is None:
            return None
        name = add_teacher(self.models, self.teacher)[1]
        return next(model for model in models if model.name == name)

    def check(self) -> None:
        """Checks all that can be known without opening models or data; writes nothing.

        Raises:
            ValueError: an option has a value that is not allowed, or the report exists already.
        """
        choose_families(name_models(self.measured), self.families)
        if self.families and self.teacher is None:
            raise ValueError(
                f"family is {', '.join(self.families)}, but scales of latents only matter beside a teacher: "
                "add --teacher MODEL, or leave --family out"
            )
        protocol_called(self.protocol)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, but must be one of {', '.join(PRECISIONS)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, but at least one image must be measured")
        choose_weights(self.weights, self.inception)
        group_models(list(name_models(self.measured)), self.groups)
        if self.weights and not self.features:
            raise ValueError("weights are given, but features are turned off: leave out --no-features")
        if self.ifid and (self.alpha or not self.features):
            reason = "images are RGBA" if self.alpha else "features are turned off"
            raise ValueError(
                f"ifid is set, but {reason}, and it compares features of RGB images: leave one out"
            )
        if (self.out / RESULTS).exists() and not self.overwrite:
            raise ValueError(
                f"{self.out} holds a report already: choose another --out, or replace it by --overwrite"
            )
        check_output_folder(self.out, "a report", any((self.out / name).exists() for name in (RESULTS, WORK)))


@contextmanager
def full_float32() -> Iterator[None]:
    """Context, or decorator, in which a GPU keeps all 23 bits of a float32; TF32 would keep 10 of them."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@full_float32()
def evaluate(
    request: Request,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
    open_model: Callable[..., Any] = load_autoencoder,
) -> Results:
    """Measures the models and writes the report; every rank must call it, and each returns the results.

    An interrupted evaluation continues where it stopped.

    Args:
        say: receives messages, on every rank.
        open_model: opens the model of a path, to measure what ``load_autoencoder`` does not open. The model
            must have the ``config``, ``downsampling_factor`` and ``latents_channels`` of a
            ``LatentAutoencoder``, and return an ``AutoencoderOutput``. It is called with ``family`` if the
            request names one.

    Raises:
        ValueError: a model, the data or an option cannot be used, or the report exists already. All of this
            is checked before anything is measured.
    """
    request.check()
    distributed.barrier()  # no rank writes before all have looked

    # Open images, models and networks.
    split, source = open_images(request.selection)
    with distributed.main_first():  # the first rank fetches models and weights, the others find them
        given: dict[str, Any] = {"families": request.families, "alpha": request.alpha}
        options = {name: value for name, value in given.items() if value}
        models = open_models(request.measured, request.precision, device, open_model, **options)
        teacher = request.find_teacher(models)
        if teacher is not None:
            check_teacher(models, teacher)
        channels = channels_of(models[0])
        if request.alpha:
            check_alpha(channels, several=True)
        wanted: Any = {"inception": request.inception, "features": request.features}
        measures = open_measures(
            device, channels=channels, networks=list(METRICS_OF), weights=request.weights, **wanted
        )
    has_ifid = request.ifid and IFID_NETWORK in measures.features
    if request.ifid and not has_ifid:
        measures.remarks.append("iFID left out: it needs Inception's weights, as rFID does")
    protocol = protocol_called(request.protocol)
    check_fixed_sizes(models, protocol)
    # An image that is too small for one model is left out for all.
    smallest_side = max(factor_of(model) * model.upscale for model in models)
    fixed_side = next((model.fixed_size for model in models if model.fixed_size is not None), None)
    blocks = ImageBlocks(
        source, protocol, channels, request.limit, smallest_side, fixed_side, alpha=request.alpha
    )
    blocks.check()

    # Measure.
    for remark in measures.remarks:
        say(remark)
    say(f"{len(blocks.indices)} of {len(source)} images of {request.data} ({split}), {request.protocol}")
    say(f"the images: {describe_source(source)}")
    # What identifies the data; a newer option appears only if given, so that older measurements stay valid.
    limit = () if request.max_pixels is None else (request.max_pixels,)
    reading = (request.image_column, request.dataset_config, request.value_range, *limit)
    data = f"{request.data} {split} {reading}"
    work = request.out / WORK
    evaluation = Evaluation(
        blocks,
        measures,
        request.settings,
        work,
        data,
        device,
        say,
        teacher,
        alpha=request.alpha,
        ifid=has_ifid,
    )
    distributed.on_main(lambda: work.mkdir(parents=True, exist_ok=True), f"write to {work}")
    with FolderLock(request.out, "out").held(say):
        request.check()  # once more: a process that was waited for may have finished its report
        evaluation.measure(models)

        # Write the report.
        if distributed.is_main():
            say("joining the numbers")
            assembled = {model.name: evaluation.result(model) for model in models}
            results = join_results(request, split, evaluation, models, assembled)
            for pattern in ("[0-9]*.png", "crop_*.png"):  # of an earlier report
                for file in (request.out / "pictures").glob(pattern):
                    file.unlink()
            shown: Any = (blocks, models, assembled, request.out, device)
            results.pictures = save_pictures(choose_pictures(assembled), *shown, alpha=request.alpha)
            results.crops = save_crops(results.pictures, *shown, alpha=request.alpha)
            write_report(results, request.out)
            shutil.rmtree(work)
    distributed.barrier()
    return results if distributed.is_main() else Results.load(request.out / RESULTS)


def check_fixed_sizes(models: Sequence[NamedModel], protocol: Protocol) -> None:
    """Raises ValueError if models take images of one size alone, and not all get that size."""
    sizes = {model.name: model.fixed_size for model in models if model.fixed_size is not None}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {side}x{side}" for name, side in sizes.items())
        raise ValueError(f"models take images of different sizes alone ({listed}): evaluate them apart")
    for model in models:
        side = model.fixed_size
        if side is not None and protocol.crop not in (None, side):
            raise ValueError(
                f"{model.name} takes images of {side}x{side} pixels alone, which {protocol.name} does not "
                f"give: use --protocol resize-{side} or crop-{side}"
            )


def join_results(
    request: Request,
    split: str,
    evaluation: Evaluation,
    models: Sequence[NamedModel],
    assembled: dict[str, Assembled],
) -> Results:
    """Returns the contents of a report, without its pictures.

    Args:
        assembled: model → its numbers, from ``evaluation``.
    """
    blocks, measures, teacher = evaluation.blocks, evaluation.measures, evaluation.teacher
    any_result = next(iter(assembled.values()))
    results = Results(
        protocol=describe_protocol(
            request, split, blocks, measures, any_result, evaluation.device, ifid=evaluation.ifid
        ),
        models={name: result.metrics for name, result in assembled.items()},
        details={model.name: describe_model(model, assembled[model.name], measures) for model in models},
    )
    results.groups = group_models(list(results.models), request.groups)
    if teacher is not None:
        results.protocol["teacher"] = describe_teacher(request, teacher)
        results.teacher = teacher.name
        results.fit = {
            model.name: describe_fit(
                model.name,
                teacher.name,
                evaluation.fit_result(model),
                assembled,
                remedy=scale_remedy(model, teacher),
            )
            for model in models
            if model is not teacher
        }
    return results


def describe_protocol(
    request: Request,
    split: str,
    blocks: ImageBlocks,
    measures: Measures,
    result: Assembled,
    device: torch.device,
    *,
    ifid: bool = False,
) -> dict[str, Any]:
    """Returns every choice that the numbers depend on; reports of equal protocols can be compared.

    Args:
        result: of any of the models; all were measured on the same images.
    """
    return {
        **blocks.protocol.describe(),
        "images": len(result.indices),
        "unreadable": result.unreadable,
        "data": {
            "name": request.data,
            "split": split,
            "limit": request.limit,
            "value_range": request.value_range,
            "list_sha256": blocks.list_sha256,
            "pixels_sha256": result.pixels_sha256,
        },
        "channels": blocks.channels,
        **({"alpha": "composites over black and white"} if request.alpha else {}),
        **({"ifid": SETTINGS} if ifid else {}),
        "precision": request.precision,
        "networks": measures.identities,
        "cycle_images": min(request.settings.cycle_images, len(blocks.indices)),
        "code": {"latentae": __version__, "commit": commit(), "torch": torch.__version__},
        "hardware": f"{distributed.world_size()} x {hardware(device)}",
        "batch_size": request.settings.batch_size,
    }


def describe_teacher(request: Request, teacher: NamedModel) -> dict[str, Any]:
    """Returns what the comparison with the teacher depends on, beside the images."""
    return {"name": teacher.name, "sha256": teacher.sha256, "families": list(request.families)}


def describe_model(model: NamedModel, result: Assembled, measures: Measures) -> ModelDetails:
    """Returns what a report shows of a model beside its metrics."""
    autoencoder: Any = model.autoencoder
    drift = {
        int(name.removeprefix("cycle_psnr_")): row.nanmean().item()
        for name, row in result.values.items()
        if name.startswith("cycle_psnr_")
    }
    remarks = [*measures.remarks, *result.remarks]
    if model.upscale > 1:
        remarks.append(
            f"it upscales {model.upscale} times: its encoder sees each image downscaled (means of "
            f"{model.upscale}x{model.upscale} pixels), and its reconstruction is compared with the whole "
            "image; PSNR downscaled compares it, downscaled again, with what the encoder saw"
        )
    if result.unreadable:
        lost, first = len(result.unreadable), result.unreadable[0]
        total = lost + len(result.indices)
        remarks.append(f"{lost} of {total} images could not be measured and are left out, such as {first}")
    return ModelDetails(
        class_name=type(autoencoder).__name__,
        path=model.path,
        sha256=model.sha256,
        parameters=sum(parameter.numel() for parameter in autoencoder.parameters()),
        downsampling_factor=factor_of(model),
        latent_channels=autoencoder.latents_channels,
        latents=result.latents,
        percentiles={
            name: percentiles(result.values[name]) for name in _PERCENTILE_METRICS if name in result.metrics
        },
        cycle_psnr={str(rounds): drift[rounds] for rounds in sorted(drift)},
        remarks=remarks,
    )


def hardware(device: torch.device) -> str:
    """Returns the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def commit() -> str | None:
    """Returns the commit of the checkout that holds this package; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
