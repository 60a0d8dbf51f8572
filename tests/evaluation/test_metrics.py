import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from latentae.evaluation.metrics import (
    band_snr,
    cycle_drift,
    l1,
    ms_ssim,
    psnr,
    ssim,
    ssim_and_ms_ssim,
    to_uint8,
)


def from_uint8(levels: Tensor) -> Tensor:
    return levels.float() / 127.5 - 1


@pytest.fixture
def levels() -> tuple[Tensor, Tensor]:
    """Two 8-bit batches [3, 3, 40, 33]: smooth images, and the same with noise of three strengths."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 5, 5, generator=generator) * 255
    target = torch.nn.functional.interpolate(coarse, size=(40, 33), mode="bicubic").clamp(0, 255)
    noise = torch.randn(target.shape, generator=generator) * torch.tensor([2.0, 20.0, 80.0]).view(3, 1, 1, 1)
    return (target + noise).clamp(0, 255).round().byte(), target.round().byte()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_images_are_clamped_and_rounded(dtype: torch.dtype) -> None:
    # 127.5 (x + 1) is 0, 0, 0, 0.498, 0.996, 127.5, 254.5, 255, 255; halves go to the even level.
    images = torch.tensor([-9, -1, -1, -0.99609375, -0.9921875, 0, 0.99609375, 1, 9], dtype=dtype)
    assert to_uint8(images).tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255]
    assert to_uint8(images).dtype == torch.uint8


def test_every_level_comes_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_what_has_no_8_bit_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.uint8: convert them to floats"):
        to_uint8(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images hold NaN"):
        to_uint8(torch.tensor([0.0, math.nan]))


def test_psnr_by_hand() -> None:
    target = from_uint8(torch.full((3, 1, 2, 2), 100))
    reconstruction = target.clone()
    reconstruction[0] += 2 / 255 * 5  # every pixel is off by 5 levels
    reconstruction[1, 0, 0, 0] += 2 / 255 * 40  # one pixel of four is off by 40
    reconstruction[2] += 2 / 255 * 0.4  # rounded away
    values = psnr(reconstruction, target)
    assert values.dtype == torch.float64
    expected = [10 * math.log10(255**2 / 25), 10 * math.log10(255**2 / 400), math.inf]
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_metrics_are_scikit_image_s(levels: tuple[Tensor, Tensor]) -> None:
    reconstruction, target = levels
    ratios = psnr(from_uint8(reconstruction), from_uint8(target))
    similarities = ssim(from_uint8(reconstruction), from_uint8(target))
    assert similarities.dtype == torch.float64
    for i in range(3):
        x, y = (np.moveaxis(images[i].numpy(), 0, -1) for images in (reconstruction, target))
        assert ratios[i].item() == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255), abs=1e-9)
        expected = structural_similarity(
            x,
            y,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert similarities[i].item() == pytest.approx(expected, abs=1e-9)


def test_ssim_by_hand() -> None:
    # Constant images have no variance: only the luminance term (2xy + c1) / (x² + y² + c1) is left.
    levels = torch.tensor([[100, 50], [0, 255], [80, 80]])
    x, y = (from_uint8(levels[:, i]).view(3, 1, 1, 1).expand(3, 2, 11, 15) for i in range(2))
    c1 = 2.55**2
    expected = [(2 * 5000 + c1) / (10000 + 2500 + c1), c1 / (255**2 + c1), 1.0]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_sees_no_border_and_its_channels_apart(levels: tuple[Tensor, Tensor]) -> None:
    reconstruction, target = (from_uint8(images) for images in levels)
    by_channel = [ssim(reconstruction[:, c : c + 1], target[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(ssim(reconstruction, target), torch.stack(by_channel).mean(dim=0))
    # With 11 x 11 pixels there is one position of the window: one moment each, weighted by the Gaussian.
    x, y = (to_uint8(images[0, 0, :11, :11]).double() for images in (reconstruction, target))
    line = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / 4.5)
    window = line.outer(line) / line.sum() ** 2
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    covariance = (window * (x - mean_x) * (y - mean_y)).sum()
    variances = (window * ((x - mean_x) ** 2 + (y - mean_y) ** 2)).sum()
    c1, c2 = 2.55**2, 7.65**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    expected = luminance * (2 * covariance + c2) / (variances + c2)
    actual = ssim(reconstruction[:1, :1, :11, :11], target[:1, :1, :11, :11])
    torch.testing.assert_close(actual, expected[None], rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_values_outside_the_range_are_clamped(metric: object, levels: tuple[Tensor, Tensor]) -> None:
    reconstruction, target = (from_uint8(images) for images in levels)
    wide = reconstruction * 1.5
    assert torch.equal(metric(wide, target), metric(wide.clamp(-1, 1), target))  # type: ignore[operator]


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_are_checked(metric: object) -> None:
    images = torch.zeros(1, 3, 16, 16)
    for other in (images[:, :1], images[0], images[:0]):
        with pytest.raises(ValueError, match=r"give two non-empty batches of the same shape"):
            metric(images, other)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"shapes \(0, 3, 16, 16\)"):
        metric(images[:0], images[:0])  # type: ignore[operator]


def test_images_smaller_than_ssim_s_window_are_refused() -> None:
    images = torch.zeros(1, 3, 16, 10)
    with pytest.raises(ValueError, match="images are 16 x 10: SSIM needs at least 11 pixels a side"):
        ssim(images, images)


def test_l1_by_hand() -> None:
    target = torch.zeros(2, 1, 2, 2)
    reconstruction = torch.tensor([0.5, -1.0])[:, None, None, None].expand(2, 1, 2, 2)
    expected = [(191 - 128) / 127.5, 128 / 127.5]  # 0 is level 128, 0.5 level 191
    assert l1(reconstruction, target).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_ms_ssim_is_of_torchmetrics_contrast_and_scikit_images_similarity(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, channels, 12, 12, generator=generator) * 255
    target = torch.nn.functional.interpolate(coarse, size=(200, 180), mode="bicubic").clamp(0, 255)
    strength = torch.tensor([3.0, 30.0, 120.0]).view(3, 1, 1, 1)
    noisy = (target + torch.randn(target.shape, generator=generator) * strength).clamp(0, 255)
    pair = [levels.round().byte() for levels in (noisy, target)]
    x, y = (levels.double() for levels in pair)
    expected = torch.ones(3, dtype=torch.float64)
    for weight in (0.0448, 0.2856, 0.3001, 0.2363):
        _, contrast = structural_similarity_index_measure(
            x, y, data_range=255.0, reduction="none", return_contrast_sensitivity=True
        )
        expected *= contrast.clamp(min=0) ** weight
        x, y = (torch.nn.functional.avg_pool2d(images, 2) for images in (x, y))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    last = [
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, **options)
        for a, b in zip(x, y, strict=True)
    ]
    theirs = expected * torch.tensor(last).clamp(min=0) ** 0.1333
    ours = ms_ssim(*(from_uint8(levels) for levels in pair))
    np.testing.assert_allclose(ours, theirs, atol=1e-7)
    assert ours[0] > 0.9 > ours[2]


def test_both_similarities_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 2, 3, 180, 200, generator=generator) * 2 - 1
    both = ssim_and_ms_ssim(*pair)
    assert torch.equal(both[0], ssim(*pair))
    assert torch.equal(both[1], ms_ssim(*pair))


def test_ms_ssim_of_equal_and_of_opposite_images() -> None:
    image = torch.rand(1, 1, 176, 176, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ms_ssim(image, image).item() == pytest.approx(1)
    assert ms_ssim(-image, image).item() == 0
    with pytest.raises(ValueError, match="MS-SSIM needs at least 176 pixels"):
        ms_ssim(image[..., 1:], image[..., 1:])


def darken(images):
    return images - 10 / 127.5


def test_each_round_adds_its_error():
    images = torch.zeros(2, 1, 4, 4)
    drift = cycle_drift(darken, images, rounds=(1, 3))
    assert list(drift) == [1, 3]
    # 0 is level 128 after rounding; each round takes ten levels away, after the half that rounding adds.
    for number, values in drift.items():
        exact = psnr(images - number * 10 / 127.5, images)
        assert values.tolist() == pytest.approx(exact.tolist(), abs=0.5)
    assert (drift[3] < drift[1]).all()


def test_a_first_round_that_is_there_is_not_run_again():
    calls = []

    def counted(images):
        calls.append(1)
        return darken(images)

    images = torch.zeros(1, 1, 4, 4)
    given = cycle_drift(counted, images, rounds=(1, 2), first=darken(images))
    assert len(calls) == 1
    assert given == cycle_drift(darken, images, rounds=(1, 2))


@pytest.mark.parametrize("rounds", [(), (0, 1), (2, 2)])
def test_bad_rounds(rounds):
    with pytest.raises(ValueError, match="must be 1 or more and rise"):
        cycle_drift(darken, torch.zeros(1, 1, 4, 4), rounds=rounds)


def grey_waves(periods: dict[float, float], side: int = 128) -> Tensor:
    """Horizontal waves on grey, [1, 1, side, side]: wavelength in pixels -> amplitude in levels."""
    columns = torch.arange(side, dtype=torch.float64)
    waves = [amplitude * torch.sin(2 * math.pi * columns / period) for period, amplitude in periods.items()]
    return ((128 + torch.stack(waves).sum(dim=0)).expand(1, 1, side, side) / 127.5 - 1).double()


def test_snr_of_waves_by_hand() -> None:
    """A quarter of the amplitude is missing at 12 pixels, and half of it at 3: 12.04 dB and 6.02 dB."""
    image = grey_waves({12: 40.0, 3: 60.0})
    snr = {name: value.item() for name, value in band_snr(grey_waves({12: 30.0, 3: 30.0}), image).items()}
    assert list(snr) == ["snr_2px", "snr_4px", "snr_8px", "snr_16px", "snr_32px"]
    assert snr["snr_8px"] == pytest.approx(20 * math.log10(4), abs=0.3)  # rounding to 8 bits adds a little
    assert snr["snr_2px"] == pytest.approx(20 * math.log10(2), abs=0.15)
    blurred = band_snr(grey_waves({12: 40.0}), image)
    assert blurred["snr_2px"].item() == pytest.approx(0, abs=0.1)
    assert blurred["snr_8px"].item() > 35


def test_snr_of_white_noise_is_the_same_in_all_bands() -> None:
    image, noise = torch.randn(2, 2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    levels = [each.round().clamp(0, 255) for each in (128 + 40 * image + 4 * noise, 128 + 40 * image)]
    found = band_snr(*map(from_uint8, levels))
    # 20 log10(40 / 4), less what rounding adds; the coarser a band, the fewer frequencies it has.
    for value, tolerance in zip(found.values(), (0.2, 0.5, 1, 2, 4), strict=True):
        assert value.tolist() == pytest.approx([19.9, 19.9], abs=tolerance)


def test_snr_is_finite_for_equal_images_and_nan_without_such_wavelengths() -> None:
    image = grey_waves({3: 40.0}, side=24)
    snr = band_snr(image, image)
    # A sine of 40 levels has a power of 800 per pixel, and rounding 1/12 per frequency of the band.
    assert 30 < snr["snr_2px"].item() < 60
    assert math.isnan(band_snr(image[..., :12, :12], image[..., :12, :12])["snr_32px"].item())
    flat = band_snr(image, torch.zeros_like(image))
    assert all(math.isnan(value.item()) for value in flat.values())  # an image without details
    brighter = band_snr(image + 10 / 127.5, image)
    assert brighter["snr_2px"].item() == pytest.approx(
        snr["snr_2px"].item(), abs=0.01
    )  # no band has the mean


def test_snr_is_that_of_the_whole_spectrum() -> None:
    """Beside a complex transform whose frequencies are put into bands one by one; odd and even sides."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (2, 1, 3, 33, 40), generator=generator, dtype=torch.uint8)
    image, other = (each.double() for each in levels)
    window = torch.outer(
        torch.hann_window(33, dtype=torch.float64), torch.hann_window(40, dtype=torch.float64)
    )
    powers = []
    for values in (image, other - image):
        centred = values - (values * window).sum(dim=(2, 3), keepdim=True) / window.sum()
        powers.append(torch.fft.fft2(centred * window).abs().square().sum(dim=(0, 1)))
    ratios = {period: [0.0, 0.0] for period in (2, 4, 8, 16, 32)}
    for row, column in np.ndindex(33, 40):
        wavelength = 1 / max(math.hypot(np.fft.fftfreq(33)[row], np.fft.fftfreq(40)[column]), 1e-9)
        if (row, column) != (0, 0):
            band = max(period for period in ratios if period <= max(wavelength, 2))
            for number, power in enumerate(powers):
                ratios[band][number] += power[row, column].item()
    found = band_snr(from_uint8(levels[1]), from_uint8(levels[0]))
    expected = [10 * math.log10(signal / noise) for signal, noise in ratios.values()]
    assert [value.item() for value in found.values()] == pytest.approx(expected, abs=1e-9)
