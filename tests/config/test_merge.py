from latentae.config.merge import Inherited, is_architecture, merge, suits, without_architecture


def test_sections_merge_and_everything_else_is_replaced() -> None:
    lower = {"seed": 1, "data": {"name": "a", "downscale": [1, 2]}, "discriminator": {"num_layers": 3}}
    upper = {"data": {"downscale": [3, 4], "split": "x"}, "discriminator": None, "max_steps": 5}
    assert merge(lower, upper) == {
        "seed": 1,
        "data": {"name": "a", "downscale": [3, 4], "split": "x"},
        "discriminator": None,
        "max_steps": 5,
    }


def test_null_section_can_be_filled_again() -> None:
    assert merge({"data": None}, {"data": {"name": "a"}}) == {"data": {"name": "a"}}


def test_inputs_are_left_as_they_are() -> None:
    lower, upper = {"data": {"name": "a"}}, {"data": {"split": "b"}}
    merge(lower, upper)["data"]["name"] = "c"
    assert (lower, upper) == ({"data": {"name": "a"}}, {"data": {"split": "b"}})


def test_other_member_drops_what_only_the_old_one_has() -> None:
    lower = {"model": {"quantizer": {"type": "vector", "num_codes": 8, "codebook_weight": 2.0}}}
    upper = {"model": {"quantizer": {"type": "ema"}}}
    assert merge(lower, upper) == {"model": {"quantizer": {"type": "ema", "num_codes": 8}}}


def test_nothing_is_dropped_without_a_change_of_member() -> None:
    lower = {"type": "vector", "codebook_weight": 2.0}
    for upper in ({"type": "vector"}, {"num_codes": 4}):
        assert merge(lower, upper, ("model", "quantizer")) == lower | upper


def test_what_somebody_misspelt_or_asked_for_is_kept_to_be_reported() -> None:
    lower = {"type": "vector", "codebok_weight": 2.0}
    upper = {"type": "ema", "codebook_weight": 3.0}
    assert merge(lower, upper, ("model", "quantizer")) == lower | upper
    assert merge({"type": "vector", "decay": 1}, {"type": "foo"}, ("model", "quantizer")) == {
        "type": "foo",
        "decay": 1,
    }


def test_a_pretrained_model_takes_the_place_of_the_architecture_below() -> None:
    lower = {"model": {"class": "KLVAE", "latent_channels": 4, "pretrained": "a"}, "seed": 1}
    upper = {"model": {"pretrained": "b", "in_channels": 1}}
    assert merge(lower, upper) == {
        "model": {"class": "KLVAE", "pretrained": "b", "in_channels": 1},
        "seed": 1,
    }
    assert merge(lower, {"model": {"pretrained": None}})["model"]["latent_channels"] == 4
    assert merge(lower, {"model": {"in_channels": 1}})["model"]["latent_channels"] == 4


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
