import pytest
import torch

from latentae.latents.inspection.spectrum import radial_power_spectrum


def shaped_noise(exponent, size=128, count=16):
    """Maps whose power falls with frequency to the given exponent."""
    noise = torch.randn(count, 1, size, size, generator=torch.manual_seed(0), dtype=torch.float64)
    f = torch.fft.fftfreq(size, dtype=torch.float64)
    radius = torch.hypot(f[:, None], f)
    radius[0, 0] = 1
    return torch.fft.ifft2(torch.fft.fft2(noise) * radius ** (exponent / 2)).real


def test_white_noise_is_flat_at_its_variance():
    noise = 3 * torch.randn(200, 2, 32, 32, generator=torch.manual_seed(0), dtype=torch.float64)
    spectrum = radial_power_spectrum(noise)
    assert spectrum.power.shape == (2, 16)
    # the window spreads the mean over the lowest ring: 7/12 of the axes' power is left, 121/144 of the
    # diagonals', and so 205/288 of all
    torch.testing.assert_close(spectrum.power[:, 1:], torch.full((2, 15), 9.0).double(), rtol=0.06, atol=0)
    torch.testing.assert_close(
        spectrum.power[:, 0], torch.full((2,), 9 * 205 / 288).double(), rtol=0.06, atol=0
    )
    assert spectrum.slope == pytest.approx(0, abs=0.02)
    assert spectrum.fine_share == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("exponent", [-1, -2, -3])
def test_the_slope_is_the_one_that_was_made(exponent):
    assert radial_power_spectrum(shaped_noise(exponent)).slope == pytest.approx(exponent, abs=0.06)


def test_a_wave_is_found_at_its_frequency():
    x = torch.arange(64, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * 12 / 64 * x).expand(1, 1, 64, 64)
    spectrum = radial_power_spectrum(wave)
    peak = int(spectrum.power[0].argmax())
    assert spectrum.frequency[peak].item() == pytest.approx(12 / 64)
    assert spectrum.frequency[-1].item() == 0.5


def test_borders_that_do_not_meet_are_no_fine_detail():
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64).expand(1, 1, 64, 64)
    assert radial_power_spectrum(ramp).fine_share < 1e-6


def test_batches_do_not_matter():
    maps = torch.randn(9, 3, 16, 12, generator=torch.manual_seed(0))
    one, other = (radial_power_spectrum(maps.split(size)) for size in (1, 4))
    torch.testing.assert_close(one.power, other.power, rtol=1e-13, atol=0)
    assert one.maps == other.maps == 9
    assert len(one.frequency) == 6  # whole cycles along the shorter side


def test_constant_channels_are_named_and_left_out():
    maps = torch.randn(4, 2, 8, 8)
    maps[:, 0] = 0.3
    spectrum = radial_power_spectrum(maps)
    assert spectrum.constant == [0]
    assert spectrum.relative.shape == (1, 4)
    assert spectrum.slope is not None
    flat = radial_power_spectrum(torch.full((2, 1, 8, 8), 0.3))
    assert (flat.constant, flat.slope, flat.fine_share) == ([0], None, None)
    assert not flat.power.isnan().any()


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        ([], "no maps"),
        ([torch.zeros(1, 1, 3, 8)], "maps of 3x8 are too small"),
        ([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 9)], "maps of one size"),
    ],
)
def test_bad_maps_are_refused(maps, says):
    with pytest.raises(ValueError, match=says):
        radial_power_spectrum(maps)
