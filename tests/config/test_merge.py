from latentae.config.merge import merge


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
