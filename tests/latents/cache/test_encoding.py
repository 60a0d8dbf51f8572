import pytest
import torch

from latentae.latents.cache.encoding import check_codes, check_values, encode_batch
from latentae.latents.cache.options import CacheOptions
from tests.latents.conftest import draw_tensors, make_kl, make_vq

IMAGES = draw_tensors(3)


def options(**changes):
    return CacheOptions(**{"image_size": 16, "dtype": "float32", **changes})


def test_mean_and_deviation_of_a_posterior_and_of_the_mirrored_images():
    model = make_kl()
    stored = encode_batch(model, IMAGES, options(flips=True))
    with torch.no_grad():
        posterior, mirrored = (model.encode(x).latent_dist for x in (IMAGES, IMAGES.flip(-1)))
    assert set(stored) == {"mean", "std", "mean_flipped", "std_flipped"}
    assert torch.equal(stored["mean"], posterior.mean)
    assert torch.equal(stored["std"], posterior.std)
    assert torch.equal(stored["mean_flipped"], mirrored.mean)
    assert torch.equal(stored["std_flipped"], mirrored.std)


def test_continuous_latents_and_codes_of_a_vq_model():
    model = make_vq()
    stored = encode_batch(model, IMAGES, options(codes=True))
    with torch.no_grad():
        assert torch.equal(stored["mean"], model.encode(IMAGES).latents)
        assert torch.equal(stored["codes"].long(), model.encode_indices(IMAGES))
    assert set(stored) == {"mean", "codes"}
    assert stored["codes"].dtype == torch.int16
    assert set(encode_batch(model, IMAGES, options(codes=True, latents=False))) == {"codes"}


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_rounds_by_its_own_digits(dtype, largest):
    exact = encode_batch(make_kl(), IMAGES, options())["mean"]
    stored = encode_batch(make_kl(), IMAGES, options(dtype=dtype))["mean"]
    assert str(stored.dtype) == f"torch.{dtype}"
    relative = ((stored.double() - exact) / exact).abs().max()
    assert largest / 4 < relative <= largest


def test_the_encoder_can_run_in_bfloat16():
    exact, rough = (
        encode_batch(make_kl(), IMAGES, options(precision=name))["mean"] for name in ("float32", "bfloat16")
    )
    assert 1e-4 < (exact - rough).abs().max() < 0.5


def test_constant_images_are_nothing_special():
    stored = encode_batch(make_kl(), torch.zeros(2, 3, 16, 16), options())
    check_values(stored, "float32")
    assert torch.equal(stored["mean"][0], stored["mean"][1])


def test_codes_need_a_vq_model():
    with pytest.raises(ValueError, match="codes are of VQ models, and this is a KLVAE"):
        check_codes(make_kl(), options(codes=True))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"the latents \(std\) hold values that are not finite in float16"):
        check_values({"mean": torch.ones(1), "std": torch.tensor([1e9]).half()}, "float16")
