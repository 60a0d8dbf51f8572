"""The guide's figures at small sizes, and the statements that the guide makes about their numbers."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from latentae.probe.denoiser import DenoiserSize

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/figures"
GUIDE = ROOT / "docs/guide.md"
SCRIPTS = ("latent_spaces", "kl_weight", "elbo", "divergences", "gradients", "latent_diffusion")
RUN_SCRIPTS = ("photographs", "failures")
SMALL_RUNS = (
    "model.block_out_channels=[8, 8, 16]",
    "model.norm_num_groups=4",
    "data.image_size=32",
)


@pytest.fixture
def script(monkeypatch):
    """Imports a script by its name; scripts import each other as neighbours."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def draw(make, **options):
    drawing = make(**options)
    assert isinstance(drawing.figure, Figure)
    assert drawing.figure.axes
    assert all(value == value for value in drawing.numbers.values())  # no NaN
    return drawing.numbers


def test_a_vae_covers_the_prior_and_an_autoencoder_does_not(script):
    numbers = draw(script("latent_spaces").make, steps=400)
    assert numbers["vae_latents_inside"] > numbers["autoencoder_latents_inside"]
    assert 0.5 < numbers["vae_latent_std"] < 2


def test_a_large_kl_weight_collapses_the_posterior(script):
    numbers = draw(script("kl_weight").make_sweep, steps=400, weights=(0.03, 10.0))
    assert numbers["kl_at_10"] < 0.2
    assert numbers["kl_at_0.03"] > 5
    assert numbers["active_latents_at_10"] == 0
    assert numbers["smallest_std_at_10"] == pytest.approx(1, abs=0.1)
    assert numbers["smallest_std_at_0.03"] < 0.5
    assert numbers["squared_error_at_10"] > 1.5 * numbers["squared_error_at_0.03"]


def test_the_learned_variance_is_the_squared_error_of_training(script):
    learned = script("kl_weight").measure(0, 1000, 0.05, learned=True)
    assert learned.variance == pytest.approx(learned.training_error, rel=0.1)
    numbers = draw(script("kl_weight").make_variance, steps=100, weights=(0.03, 10.0))
    assert numbers["learned_as_weight"] == 2 * numbers["learned_variance"]


def test_bounds_rise_from_the_elbo_to_log_p(script):
    numbers = draw(script("elbo").make, steps=300, points=151, samples=1000)
    bounds = [numbers[f"bound_of_{count}"] for count in (1, 10, 100)]
    assert bounds == sorted(bounds)
    assert numbers["elbo"] < bounds[1] < bounds[2] < numbers["log_p"] + 0.02
    assert numbers["bound_of_1"] == pytest.approx(numbers["elbo"])
    assert numbers["elbo_plus_kl"] == pytest.approx(numbers["log_p"], abs=0.1)
    assert numbers["kl_to_true_posterior"] > 0


def test_what_each_divergence_fits(script):
    numbers = draw(script("divergences").make, steps=60, divergences=("forward", "reverse"))
    # KL(p || q) matches the moments of p: mean 0 and variance 2² + 0.4².
    assert numbers["fit_reverse_mean"] == pytest.approx(0, abs=0.02)
    assert numbers["fit_reverse_std"] == pytest.approx(4.16**0.5, abs=0.02)
    # KL(q || p) takes one of the modes.
    assert numbers["fit_forward_mean"] == pytest.approx(2, abs=0.05)
    assert numbers["fit_forward_std"] == pytest.approx(0.4, abs=0.05)
    assert numbers["reverse_posterior_std"] > numbers["forward_posterior_std"]


def test_reparametrisation_has_the_smaller_variance(script):
    numbers = draw(script("gradients").make, steps=200, samples=1000)
    for moment in range(3):
        reparametrised, baseline, score = (
            numbers[f"{name}_variance_{moment}"] for name in ("reparametrised", "baseline", "score")
        )
        assert reparametrised < baseline < score


def test_both_gradient_estimators_have_the_same_mean(script):
    digits = script("digits")
    torch.manual_seed(0)
    model = digits.DigitVAE(2, digits.GaussianLikelihood()).double()
    found = script("gradients").estimate(model, digits.open_digits()[0].images[:2].double(), 100_000)
    reparametrised, baseline = (found.mean(name) for name in ("reparametrised", "baseline"))
    error = (found.variance("baseline") / 100_000) ** 0.5
    assert (reparametrised - baseline).norm(dim=-1).mean().item() < 3 * error
    assert reparametrised.norm(dim=-1).mean().item() > 10 * error


def test_a_denoiser_is_trained_for_each_factor(script):
    numbers = draw(
        script("latent_diffusion").make,
        autoencoder_steps=3,
        denoiser_steps=20,
        size=DenoiserSize(width=32, depth=1),
        samples=40,
        count=128,
    )
    assert numbers["latent_std"] * numbers["scaling_factor"] == pytest.approx(1)
    assert 0 <= numbers["right_readable"] <= 1


def test_figures_of_the_four_models(script, runs, alexnet_trunk):
    photographs = script("photographs")
    options = {"runs": runs, "steps": 6, "changes": SMALL_RUNS}
    numbers = draw(photographs.make_reconstructions, trunk="alex", **options)
    assert all(numbers[f"{name}_psnr"] > 5 for name in photographs.MODELS)
    assert 0 < numbers["vq_bits_per_pixel"] <= 0.5  # 8 bits for 16 pixels
    assert draw(photographs.make_codebook, **options)["perplexity"] > 1
    assert "vqgan_adversarial_weight" in draw(photographs.make_curves, **options)


def test_figure_of_the_failures(script, runs):
    numbers = draw(
        script("failures").make,
        runs=runs,
        steps=6,
        changes=SMALL_RUNS,
        digit_steps=400,
        decoder_steps=3,
        scale=2.0**24,
    )
    assert numbers["collapsed_kl"] < 0.2 < numbers["healthy_kl"]
    assert numbers["upsampling_ripple"] < 1e-6 < numbers["transposed_ripple"]
    assert numbers["not_finite_share"] > 0.5
    assert numbers["largest_activation"] > 65504
    assert numbers["error_when_half_safe"] < 0.1


@pytest.mark.parametrize("name", [*SCRIPTS, *RUN_SCRIPTS])
def test_scripts_explain_themselves(script, name, monkeypatch, capsys):
    drawing, module = script("drawing"), script(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        drawing.main(module.__doc__, {}, with_runs=name in RUN_SCRIPTS)
    assert ended.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out.replace("\n", " ")


def test_the_guide_shows_every_figure_and_every_figure_is_small():
    shown = set(re.findall(r"\(figures/(\w+\.png)\)", GUIDE.read_text()))
    pictures = {path.name: path for path in FOLDER.glob("*.png")}
    assert shown == set(pictures)
    assert max(path.stat().st_size for path in pictures.values()) < 150_000
    assert sum(path.stat().st_size for path in pictures.values()) < 2_000_000
    for path in pictures.values():
        assert Image.open(path).convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # readable on dark pages
