"""Compares the metrics of an evaluation with other packages' on the same images, and times each family.

The images are windows of the built-in photographs, and a blur reconstructs them. Feature networks have
random, saved weights, which both sides load from the same file: torch-fidelity's Inception, and small DINOv2
and CLIP networks at their own image size, where neither side resizes. The time table uses networks of the
published sizes (ViT-L/14). Needs torch-fidelity, torchmetrics, scikit-image, transformers and lpips.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lpips
import numpy as np
import torch
from bench_evaluate import SIDE, Blur, Windows, save_random_inception
from measuring import (
    benchmark_parser,
    default_device,
    describe_run,
    in_turns,
    print_head,
    print_row,
)
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import CLIPVisual, FeatureExtractorCLIP
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from transformers import Dinov2Config, Dinov2Model

from latentae.evaluation.clip import CLIPFeatures
from latentae.evaluation.colour import channel_shifts, colour_difference, worst_crops
from latentae.evaluation.dinov2 import DINOv2Features
from latentae.evaluation.distances import (
    GaussianStatistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from latentae.evaluation.features import InceptionFeatures, VGG16Features
from latentae.evaluation.metrics import band_snr, l1, psnr, ssim, ssim_and_ms_ssim, to_images, to_uint8
from latentae.losses.perceptual import LPIPS
from latentae.weights import load_trunk

_CLIP_SIDE, _DINOV2_SIDE = 28, 224
# Pixels along each edge where the window of SSIM reaches beyond the image, which torchmetrics reflects.
_BORDER = 5
_LARGE_CLIP = {"embed_dim": 768, "image_resolution": 336, "vision_layers": 24, "vision_width": 1024}
_LARGE_DINOV2 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    print(describe_run(device))
    pixels = _pixels(arguments.images)
    made = to_uint8(Blur()(to_images(pixels)).sample)
    print(f"{arguments.images} images of {SIDE}x{SIDE}, reconstructed by a blur")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for section in arguments.sections:
            print()
            if section == "time":
                _print_times(pixels.to(device), made.to(device), Path(folder), arguments.rounds)
                continue
            print_head("number", "ours", "theirs", "package", "largest difference / largest value")
            rows = {"features": feature_rows, "metrics": metric_rows}[section]
            for name, ours, theirs, package in rows(pixels, made, Path(folder)):
                print_row(name, _shown(ours), _shown(theirs), package, f"{difference(ours, theirs):.1e}")


def _pixels(count: int) -> Tensor:
    source = Windows(count)
    return torch.from_numpy(np.stack([source.load(n, 3) for n in range(count)])).permute(0, 3, 1, 2)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest absolute difference, divided by the largest absolute value of theirs."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _shown(values: Tensor) -> str:
    return f"{values.item():.6g}" if values.numel() == 1 else f"{values.double().mean().item():.6g} (mean)"


# --- features and their distances

Row = tuple[str, Tensor, Tensor, str]


def feature_rows(pixels: Tensor, made: Tensor, folder: Path) -> Iterator[Row]:
    """Yields name, ours, theirs and package of features and of the distances between them."""
    path = folder / "inception.pth"
    save_random_inception(path)
    extractor: Any = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    )
    package = "torch-fidelity"
    pairs = [(InceptionFeatures(path)(x), extractor(x)[0]) for x in (pixels, made)]
    yield "Inception features", torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]), package
    yield "FID", *_frechet(pairs), package
    first, second = (theirs.double() for _, theirs in pairs)
    count = len(pixels)
    found: Any = kid_features_to_metric(first, second, kid_subsets=1, kid_subset_size=count, verbose=False)
    ours = kernel_distance(pairs[0][0].numpy(), pairs[1][0].numpy(), subsets=1, subset_size=count)
    yield "KID", _number(ours.value), _number(found["kernel_inception_distance_mean"]), package
    covered = precision_recall(pairs[0][0].numpy(), pairs[1][0].numpy())
    options: Any = {"prc_neighborhood": 3, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
    found = prc_features_to_metric(pairs[1][1], pairs[0][1], **options)
    yield "precision", _number(covered.precision), _number(found["precision"]), package
    yield "recall", _number(covered.recall), _number(found["recall"]), package

    dinov2 = small_dinov2()
    weights = save_dinov2(dinov2, folder / "dinov2")
    with patch("torch.hub.load", lambda repository, name: _ClassToken(dinov2)):
        extractor = FeatureExtractorDinoV2("dinov2-vit-b-14", ["dinov2"])
    crops = [x[..., :_DINOV2_SIDE, :_DINOV2_SIDE] for x in (pixels, made)]
    pairs = [(DINOv2Features(weights)(x), extractor(x)[0]) for x in crops]
    yield "DINOv2 features", pairs[0][0], pairs[0][1], package
    yield "FD-DINOv2", *_frechet(pairs), package

    sizes = {"embed_dim": 16, "image_resolution": _CLIP_SIDE, "vision_layers": 2, "vision_width": 64}
    weights, program = save_clip(folder, **sizes)
    with_weights = {"feature_extractor_weights_path": str(program)}
    extractor = FeatureExtractorCLIP("clip-vit-l-14-336px", ["clip"], **with_weights)
    crop = pixels[..., :_CLIP_SIDE, :_CLIP_SIDE]
    expected = nn.functional.normalize(extractor(crop)[0], dim=1)
    yield "CLIP features, of unit length", CLIPFeatures(weights)(crop), expected, package


def _frechet(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    ours = []
    for features, _ in pairs:
        ours.append(GaussianStatistics(features.shape[1]))
        ours[-1].add(features)
    theirs: Any = [fid_features_to_statistics(features) for _, features in pairs]
    found: Any = fid_statistics_to_metric(*theirs, verbose=False)
    return _number(frechet_distance(*ours)), _number(found["frechet_inception_distance"])


def _number(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


class _ClassToken(nn.Module):
    """Returns what the model of torch's hub returns: the class token."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        token: Tensor = self.network(pixels).pooler_output
        return token


def small_dinov2() -> Any:
    """Returns a DINOv2 of two layers whose random weights are large enough for features to differ."""
    torch.manual_seed(0)
    config = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = Dinov2Model(Dinov2Config(**config, image_size=_DINOV2_SIDE)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def save_dinov2(network: Any, folder: Path) -> Path:
    """Writes the weights as on the hub, and returns the path of the file."""
    network.save_pretrained(folder)
    return folder / "model.safetensors"


def save_clip(folder: Path, **sizes: int) -> tuple[Path, Path]:
    """Writes random weights of CLIP as a file of tensors and as the program that OpenAI releases."""
    torch.manual_seed(0)
    network = CLIPVisual(**sizes, vision_patch_size=14)
    tensors = {name: tensor.half().float() for name, tensor in network.state_dict().items()}
    tensors["text_projection"] = torch.zeros(8, sizes["embed_dim"])
    torch.save(tensors, folder / "clip.pt")
    root = nn.Module()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.register_buffer(last, tensor)
    torch.jit.script(root).save(folder / "clip_program.pt")
    return folder / "clip.pt", folder / "clip_program.pt"


# --- metrics of one image


def metric_rows(pixels: Tensor, made: Tensor, folder: Path) -> Iterator[Row]:
    """Yields name, ours, theirs and package of metrics of one value per image."""
    shown, images = to_images(made), to_images(pixels)
    levels, whole = made.double(), pixels.double()
    each: Any = {"data_range": 255.0, "reduction": "none"}
    expected = peak_signal_noise_ratio(levels, whole, dim=(1, 2, 3), **each)
    yield "PSNR", psnr(shown, images), expected, "torchmetrics"
    yield "SSIM", ssim(shown, images), _scikit_ssim(made, pixels), "scikit-image"
    expected, everywhere = structural_similarity_index_measure(levels, whole, return_full_image=True, **each)
    inner = everywhere[..., _BORDER:-_BORDER, _BORDER:-_BORDER].mean(dim=(1, 2, 3))
    yield "SSIM", ssim(shown, images), inner, "torchmetrics, without the border"
    yield "SSIM", ssim(shown, images), expected, "torchmetrics, with the border"
    expected = multiscale_structural_similarity_index_measure(levels, whole, **each)
    yield "MS-SSIM", ssim_and_ms_ssim(shown, images)[1], expected, "torchmetrics, with the border"
    labs = [[rgb2lab(image.permute(1, 2, 0).numpy()) for image in batch] for batch in (made, pixels)]
    expected = torch.from_numpy(np.stack([deltaE_ciede2000(x, y) for x, y in zip(*labs, strict=True)]))
    yield "ΔE 2000 of each pixel", colour_difference(shown, images), expected, "scikit-image"
    for net in ("alex", "vgg"):
        trunk = load_trunk(net)
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
        for name, parameter in theirs.net.named_parameters():
            parameter.copy_(trunk[f"features.{name.partition('.')[2]}"])
        expected = theirs(shown[:2], images[:2]).flatten()
        yield f"LPIPS ({net}), 2 images", LPIPS(trunk, net)(shown[:2], images[:2]), expected, "lpips"


def _scikit_ssim(made: Tensor, pixels: Tensor) -> Tensor:
    options: Any = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(made.numpy(), pixels.numpy(), strict=True)
    return torch.tensor([structural_similarity(*p, channel_axis=0, **options) for p in pairs])


# --- time


def _print_times(pixels: Tensor, made: Tensor, folder: Path, rounds: int) -> None:
    device, count = pixels.device, len(pixels)
    print_head("family", "ms per image", "range")
    for name, run in families(pixels, made, folder):
        took = [1000 * spent / count for spent in in_turns({name: run}, rounds, device)[name]]
        print_row(name, f"{statistics.median(took):.1f}", f"{min(took):.1f} to {max(took):.1f}")


def families(pixels: Tensor, made: Tensor, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields the name of each family of metrics, and what computes it. A network is built when it is due."""
    device = pixels.device
    shown, images = to_images(made), to_images(pixels)
    error = colour_difference(shown, images)
    yield "PSNR and L1", lambda: (psnr(shown, images), l1(shown, images))
    yield "SSIM and MS-SSIM", lambda: ssim_and_ms_ssim(shown, images)
    yield "SNR in octave bands", lambda: band_snr(shown, images)
    yield "ΔE 2000", lambda: colour_difference(shown, images)
    yield "shifts of the channels", lambda: channel_shifts(shown, images)
    yield "worst crops, given ΔE", lambda: worst_crops(error)
    for net in ("alex", "vgg"):
        yield f"LPIPS ({net})", partial(LPIPS(load_trunk(net), net).to(device), shown, images)
    yield "VGG16 features", partial(VGG16Features(device), made)
    path = folder / "inception.pth"
    save_random_inception(path)
    yield "Inception features", partial(InceptionFeatures(path, device), made)
    # The networks of ViT-L take more than a gigabyte each: one at a time.
    network = Dinov2Model(Dinov2Config(**_LARGE_DINOV2, image_size=518))
    path = save_dinov2(network, folder / "large")
    del network
    yield "DINOv2 features, ViT-L/14", partial(DINOv2Features(path, device), made)
    path, _ = save_clip(folder, **_LARGE_CLIP)
    yield "CLIP features, ViT-L/14 at 336", partial(CLIPFeatures(path, device), made)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=3, threads=1)
    parser.add_argument("--images", type=int, default=4, help="number of images; features need 4 or more")
    sections = ("features", "metrics", "time")
    parser.add_argument(
        "--sections", nargs="+", default=list(sections), choices=sections, help="tables to print"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
