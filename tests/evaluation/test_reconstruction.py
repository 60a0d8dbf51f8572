import math

import pytest
import torch
from torch import nn

from latentae.evaluation.metrics import psnr, ssim
from latentae.evaluation.reconstruction import NoMeasurementError, evaluate_reconstruction
from latentae.models import AutoencoderOutput

CPU = torch.device("cpu")


class Dimmer(nn.Module):
    """Reconstructs each image darker, and gives code 2 everywhere."""

    def __init__(self):
        super().__init__()
        self.quantize = nn.Module()
        self.quantize.num_codes, self.quantize.depth = 4, None

    def forward(self, images):
        indices = torch.full((len(images), 2, 2), 2)
        return AutoencoderOutput(sample=images * 0.5, indices=indices)


def batches(images, sizes):
    numbers = torch.arange(len(images))
    for batch, indices in zip(images.split(sizes), numbers.split(sizes), strict=True):
        yield {"images": batch, "indices": indices}


def l1_distance(reconstruction, images):
    return (reconstruction - images).abs().mean(dim=(1, 2, 3))


def test_means_over_images_by_hand():
    images = torch.stack([torch.full((3, 16, 16), value) for value in (1.0, -1.0, 1 / 127.5)])
    quality = evaluate_reconstruction(Dimmer(), batches(images, [2, 1]), l1_distance, CPU)
    # 255 → 191 and 0 → 64 (rounded, half to even); 128.5 → 128 stays 128.
    assert quality.images == 3
    assert quality.lpips == pytest.approx((64 / 127.5 + 64 / 127.5 + 0) / 3, abs=1e-6)
    assert quality.codebook_usage == 0.25
    assert quality.codebook_perplexity == pytest.approx(1.0)
    assert quality.psnr == math.inf or quality.psnr > 0


def test_codes_of_several_tables():
    class Deep(Dimmer):
        """Gives codes 0 and 1 in its first table, and 2 everywhere in its second."""

        def __init__(self):
            super().__init__()
            self.quantize.depth = 2

        def forward(self, images):
            indices = torch.full((len(images), 2, 2, 2), 2)
            indices[:, 0] = torch.tensor([0, 1])
            return AutoencoderOutput(sample=images, indices=indices)

    images = torch.rand(3, 3, 16, 16)
    quality = evaluate_reconstruction(Deep(), batches(images, [2, 1]), l1_distance, CPU)
    assert quality.codebook_usage == 3 / 8
    assert quality.codebook_perplexity == pytest.approx((2 + 1) / 2)


def test_the_same_for_every_batch_size():
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, parts = (
        evaluate_reconstruction(Dimmer(), batches(images, sizes), l1_distance, CPU)
        for sizes in ([5], [2, 2, 1])
    )
    assert whole == parts
    assert whole.psnr == pytest.approx(psnr(images * 0.5, images).mean().item())
    assert whole.ssim == pytest.approx(ssim(images * 0.5, images).mean().item())


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        evaluate_reconstruction(Dimmer(), [], l1_distance, CPU)


def test_nan_is_no_measurement():
    class Broken(Dimmer):
        def forward(self, images):
            return AutoencoderOutput(sample=images / 0 * 0, indices=torch.zeros(len(images), 2, 2))

    with pytest.raises(NoMeasurementError, match="hold NaN"):
        evaluate_reconstruction(Broken(), batches(torch.ones(2, 3, 16, 16), [1, 1]), l1_distance, CPU)
