from latentae.config.architecture import Inherited, is_architecture, suits, without_architecture


def test_what_describes_tensors() -> None:
    for key in ("block_out_channels", "latent_channels", "use_quant_conv", "backbone", "quantizer.num_codes"):
        assert is_architecture(key), key
    for key in ("class", "pretrained", "quantizer", "quantizer.type", "quantizer.commitment_weight"):
        assert not is_architecture(key), key


def test_how_a_quantizer_learns_stays() -> None:
    quantizer = {"type": "ema", "num_codes": 8, "code_dim": 2, "decay": 0.9, "revive_after": 20}
    model = {"class": "VQGAN", "latent_channels": 4, "pretrained": "a", "quantizer": quantizer}
    assert without_architecture(model) == {
        "class": "VQGAN",
        "pretrained": "a",
        "quantizer": {"type": "ema", "decay": 0.9, "revive_after": 20},
    }
    assert without_architecture({"class": "KLVAE", "in_channels": 3, "quantizer": None}) == {
        "class": "KLVAE",
        "quantizer": None,
    }
    assert model["latent_channels"] == 4
    assert isinstance(without_architecture(model)["quantizer"], Inherited)


def test_codes_learned_by_gradient_and_by_averages_are_the_same_tensors() -> None:
    assert suits("ema", "vector")
    assert suits("fsq", "fsq")
    assert not suits("ema", "fsq")
    assert not suits("ema", None)
