import copy

import pytest
import torch

from latentae.export.comparison import compare
from tests.export.conftest import make_kl, make_vq


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_a_model_equals_itself(make):
    model = make()
    assert compare(model, model, copy.deepcopy(model)) == {
        "encode": 0.0,
        "decode": 0.0,
        "normalised latents": 0.0,
    }
    assert set(compare(*[make(scaling_factor=None)] * 3)) == {"encode", "decode"}


def test_every_difference_is_found():
    model = make_kl()
    biased = copy.deepcopy(model)
    with torch.no_grad():
        biased.quant_conv.bias[0] += 1.0
    errors = compare(model, model, biased)
    assert errors["decode"] == 0.0  # of the same latents
    assert min(errors["encode"], errors["normalised latents"]) > 0.1

    noisier = copy.deepcopy(model)
    with torch.no_grad():
        noisier.quant_conv.bias[4:] += 1.0
    assert compare(model, model, noisier)["encode"] > 0.1

    brighter = copy.deepcopy(model)
    with torch.no_grad():
        brighter.decoder.conv_out.bias += 1.0
    errors = compare(model, model, brighter)
    assert errors["decode"] > 0.1
    assert errors["encode"] == 0.0

    rescaled = copy.deepcopy(model)
    rescaled.register_to_config(scaling_factor=0.14)  # 0.7 / 5
    errors = compare(model, model, rescaled)
    assert errors["normalised latents"] == pytest.approx(0.8)
    assert errors["encode"] == errors["decode"] == 0.0


def test_other_codes_are_found():
    model = make_vq()
    shuffled = copy.deepcopy(model)
    shuffled.quantize.embedding.weight.data = model.quantize.embedding.weight.flip(0)
    assert compare(model, model, shuffled)["decode"] > 0.1


def test_what_cannot_be_compared_is_refused():
    model = make_kl()
    with pytest.raises(ValueError, match=r"gives \[2, 8, 3, 4\] where its source gives \[2, 4, 3, 4\]"):
        compare(model, model, make_kl(latent_channels=8))
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.encoder.conv_in.weight[0] = float("nan")
    with pytest.raises(ValueError, match="its weights are damaged"):
        compare(damaged, damaged, damaged)
    with pytest.raises(ValueError, match="overflow"):
        compare(model, model, damaged)
