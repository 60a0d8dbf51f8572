import pytest
import torch

from latentae.evaluation.models import (
    NamedModel,
    channels_of,
    choose_families,
    factor_of,
    name_models,
    open_models,
    weights_sha256,
)
from tests.evaluation.conftest import tiny_model


def test_the_hash_follows_every_weight(models):
    before = weights_sha256(models["kl"])
    assert before == weights_sha256(models["kl"])
    assert before != weights_sha256(models["vq"])
    models["kl"].decoder.conv_out.bias.data[0] += 1e-3
    assert before != weights_sha256(models["kl"])


def test_reduced_precision_only_where_asked(models):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    plain, reduced = (
        NamedModel("kl", "", models["kl"], autocast)(images).sample for autocast in (None, torch.bfloat16)
    )
    with torch.no_grad():
        assert torch.equal(plain, models["kl"](images).sample)
    assert reduced.dtype == torch.float32
    assert 0 < (plain - reduced).abs().max() < 0.1


def test_codes(models):
    assert NamedModel("kl", "", models["kl"]).num_codes is None
    assert NamedModel("vq", "", models["vq"]).num_codes == 16


def test_a_model_is_called_by_its_name_or_by_its_place(tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "file.safetensors").write_bytes(b"")
    given = [
        str(tmp_path / "run/model"),
        str(tmp_path / "file.safetensors"),
        "mine=owner/model",
        "owner/vae-2",
    ]
    assert list(name_models(given)) == ["run", "file", "mine", "vae-2"]
    with pytest.raises(ValueError, match="invalid model name 'a name'"):
        name_models(["a name=owner/model"])


def test_opened_as_they_were_saved(models, tmp_path):
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    paths = [str(tmp_path / name) for name in models]
    kl, vq = open_models(paths, "bfloat16", torch.device("cpu"))
    assert (kl.name, kl.autocast, channels_of(kl), factor_of(vq)) == ("kl", torch.bfloat16, 3, 2)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    kl.autocast = None
    assert torch.equal(kl(images).sample, NamedModel("kl", "", models["kl"])(images).sample)


def test_models_that_cannot_be_compared(tmp_path):
    tiny_model("kl").save_pretrained(tmp_path / "rgb")
    tiny_model("kl", in_channels=1, out_channels=1).save_pretrained(tmp_path / "grey")
    tiny_model("kl", in_channels=1).save_pretrained(tmp_path / "colouriser")
    rgb, grey, colouriser = (str(tmp_path / name) for name in ("rgb", "grey", "colouriser"))
    with pytest.raises(ValueError, match=r"different numbers of channels \(rgb 3, grey 1\)"):
        open_models([rgb, grey], "float32", torch.device("cpu"))
    with pytest.raises(ValueError, match="colouriser makes images of 3 channels from 1"):
        open_models([colouriser], "float32", torch.device("cpu"))
    with pytest.raises(ValueError, match="precision is 'half'"):
        open_models([rgb], "half", torch.device("cpu"))


def test_a_diverged_model_is_named(models):
    torch.nn.init.constant_(models["kl"].decoder.conv_out.bias, float("nan"))
    with pytest.raises(ValueError, match="mine makes images that hold NaN"):
        NamedModel("mine", "", models["kl"])(torch.zeros(1, 3, 16, 16))


def test_another_config_of_the_same_weights_is_another_model(models):
    before = NamedModel("kl", "", models["kl"]).identity
    models["kl"].register_to_config(norm_num_groups=2)
    assert NamedModel("kl", "", models["kl"]).identity != before
    assert (
        NamedModel("kl", "", models["vq"], torch.bfloat16).identity
        != NamedModel("kl", "", models["vq"]).identity
    )


def test_families_of_models():
    assert choose_families(["a", "b"], []) == {}
    assert choose_families(["a", "b"], ["sd1"]) == {"a": "sd1", "b": "sd1"}
    assert choose_families(["a", "b"], ["b=flux", "a=sd1"]) == {"a": "sd1", "b": "flux"}
    for families, says in (
        (["sd9"], "family is 'sd9', but must be one of sd1"),
        (["c=sd1"], "'c=sd1' names no model: the models are called a, b"),
        (["sd1", "a=flux"], "a has two families, sd1 and flux"),
    ):
        with pytest.raises(ValueError, match=says):
            choose_families(["a", "b"], families)


def test_a_model_is_opened_with_its_family():
    opened = {}

    def open_model(path, **arguments):
        opened[path] = arguments
        return tiny_model("kl")

    open_models(["a=x", "b=y"], "float32", torch.device("cpu"), open_model, families=["b=sd1"])
    assert opened == {"x": {}, "y": {"family": "sd1"}}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(models, value):
    torch.nn.init.constant_(models["kl"].decoder.conv_out.bias, value)
    with pytest.raises(ValueError, match="kl makes images that hold NaN or infinity"):
        NamedModel("kl", "", models["kl"])(torch.rand(1, 3, 16, 16) * 2 - 1)
