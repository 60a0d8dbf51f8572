from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from latentae.config import ConfigError, VQVAEConfig, config_from_mapping, dump_config, load_config
from latentae.config.merge import merge
from latentae.config.pretrained import fill_in
from latentae.config.yaml_text import parse_yaml
from tests.config.example import config, mapping

KL: dict[str, Any] = {
    "class": "KLVAE",
    "in_channels": 1,
    "out_channels": None,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 6,
    "attention_levels": [False, True],
    "mid_block_attention": False,
    "use_quant_conv": False,
}
VQ: dict[str, Any] = {
    **{key: value for key, value in KL.items() if key != "use_quant_conv"},
    "class": "VQGAN",
    "quantizer": {"type": "vector", "num_codes": 77, "code_dim": None},
}


# These models do not have three channels, so the quickstarts' colour augmentation cannot be used.
ANY_CHANNELS = "data: {color_jitter: null}\n"
PRETRAINED = ["model.pretrained=some/model", "data.color_jitter=null"]


class Describe:
    """Stands for the pretrained model; remembers what it was asked."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(data["model"]["pretrained"])
        return self.answer


def test_a_class_and_a_place_are_a_whole_model_section(tmp_path: Path) -> None:
    file = tmp_path / "fine.yaml"
    file.write_text(f"base: quickstart_kl\nmodel: {{class: KLVAE, pretrained: some/model}}\n{ANY_CHANNELS}")
    describe = Describe(KL)
    run = load_config("kl_vae", ["--config", str(file)], describe)
    assert run.model.model_dump(mode="json", by_alias=True) == {**KL, "pretrained": "some/model"}
    assert describe.asked == ["some/model"]


def test_the_command_line_s_pretrained_model_goes_before_a_file_s_architecture() -> None:
    words = [*PRETRAINED, "model.latent_channels=16"]
    run = load_config("kl_vae", words, Describe(KL))
    assert (run.model.block_out_channels, run.model.latent_channels) == ((8, 16), 16)


def test_what_stands_beside_it_is_a_change_to_it(tmp_path: Path) -> None:
    file = tmp_path / "fine.yaml"
    file.write_text(f"base: quickstart_kl\nmodel: {{pretrained: some/model, in_channels: 4}}\n{ANY_CHANNELS}")
    assert load_config("kl_vae", ["--config", str(file)], Describe(KL)).model.in_channels == 4


def test_how_codes_learn_is_the_config_s_and_how_many_there_are_the_model_s() -> None:
    quantizer = load_config("vqgan", PRETRAINED, Describe(VQ)).model.quantizer
    default = load_config("vqgan", []).model.quantizer
    assert (quantizer.num_codes, quantizer.type, quantizer.revive_after) == (77, "ema", default.revive_after)
    assert (default.type, default.revive_after) == ("ema", 20)


def test_how_another_kind_of_quantizer_learns_is_not_asked_of_the_base() -> None:
    quantizer = {"type": "other", "levels": [8, 5]}
    data = merge(mapping(), {"model": {"pretrained": "some/model"}})
    filled = fill_in(data, Describe({**VQ, "quantizer": quantizer}))
    assert filled["model"]["quantizer"] == quantizer
    beside = merge(mapping(), {"model": {"pretrained": "a", "quantizer": {"type": "vector"}}})
    assert fill_in(beside, Describe({**VQ, "quantizer": quantizer}))["model"]["quantizer"]["type"] == "vector"


def test_a_vq_vae_takes_a_vq_gan_s_weights() -> None:
    run = load_config("vq_vae", PRETRAINED, Describe(VQ))
    assert isinstance(run.model, VQVAEConfig)
    assert run.model.block_out_channels == (8, 16)


def test_the_class_may_be_left_out() -> None:
    data = mapping({"model": {"pretrained": "some/model"}, "loss.adversarial": None, "discriminator": None})
    assert config_from_mapping(fill_in(data, Describe(KL))).model.class_ == "KLVAE"


def test_a_resolved_config_asks_nobody() -> None:
    run = config({"model.pretrained": "some/model"})
    data = parse_yaml(dump_config(run), "", is_file=False)
    describe = Describe({})
    assert config_from_mapping(fill_in(data, describe)) == run
    assert fill_in(mapping(), describe) == mapping()
    assert describe.asked == []


def test_another_family_says_which_script() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("kl_vae", ["model.pretrained=some/model"], Describe(VQ))
    assert str(caught.value) == (
        "`model.class` is KLVAE, but `model.pretrained` (some/model) holds a VQGAN; name another model "
        "there, or use train_vq_vae.py or train_vqgan.py"
    )
    with pytest.raises(
        ConfigError, match=r"holds a KLVAE; name another model there, or use train_kl_vae\.py"
    ):
        load_config("vqgan", ["model.pretrained=some/model"], Describe(KL))


def test_a_model_that_cannot_be_had_is_one_sentence() -> None:
    def describe(data: Mapping[str, Any]) -> dict[str, Any]:
        raise ValueError("there is no file or folder nowhere")

    with pytest.raises(ConfigError) as caught:
        load_config("kl_vae", ["model.pretrained=nowhere"], describe)
    assert str(caught.value) == (
        "`model.pretrained` is nowhere, which cannot be used: there is no file or folder nowhere"
    )


def test_a_section_that_is_no_section_is_left_to_validation() -> None:
    describe = Describe(KL)
    for model in (None, {"pretrained": 5}, {"pretrained": ""}, {"pretrained": "a", "class": "Foo"}):
        assert fill_in({"model": model}, describe) == {"model": model}
    assert describe.asked == []
