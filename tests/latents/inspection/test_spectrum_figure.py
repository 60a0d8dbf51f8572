import torch

from latentae.latents.inspection.figure import COLOURS
from latentae.latents.inspection.spectrum import radial_power_spectrum
from latentae.latents.inspection.spectrum_figure import compare_spectra


def drawn(figure, colour):
    """Pixels of a colour within the frame, left of the legend."""
    return int((figure.picture[:, :880] == COLOURS[colour]).all(axis=-1).sum())


def test_one_line_a_spectrum():
    noise = torch.randn(4, 2, 32, 32, generator=torch.manual_seed(0))
    figure = compare_spectra(
        {"a": radial_power_spectrum(noise), "b": radial_power_spectrum(noise.cumsum(dim=3))}
    )
    assert drawn(figure, 0) > 300
    assert drawn(figure, 1) > 300
    assert drawn(figure, 2) == 0


def test_one_without_power_is_named_and_not_drawn():
    flat, noise = torch.zeros(1, 1, 8, 8), torch.randn(1, 1, 8, 8, generator=torch.manual_seed(0))
    spectra = {"flat": radial_power_spectrum(flat), "noise": radial_power_spectrum(noise)}
    figure = compare_spectra(spectra)
    assert drawn(figure, 0) == 0
    assert drawn(figure, 1) > 300
    assert drawn(compare_spectra({"flat": spectra["flat"]}), 0) == 0
