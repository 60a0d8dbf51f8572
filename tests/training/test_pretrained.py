import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderTiny

from latentae import KLVAE, VQGAN, VQVAE
from latentae.config import ConfigError
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.training.accelerator import create_accelerator
from latentae.training.dry_run import dry_run
from latentae.training.networks import build_networks
from latentae.training.pretrained import fingerprint
from latentae.training.trainer import Trainer
from tests.training.pretrained_models import FORMS, fine_tuning, make_pretrained, write_pretrained


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def start(config):
    """The networks of a run at its first step."""
    networks = build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    networks.pretrained.take_up()
    return networks


def assert_holds(model, pretrained):
    for name, value in pretrained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", [KLVAE, VQGAN])
def test_weights_of_every_format(tiny, tmp_path, form, cls):
    pretrained = make_pretrained(cls)
    place = write_pretrained(pretrained, tmp_path, form)
    # What no config beside the file tells is asked for.
    told = ("model.norm_num_groups=8",) if form in ("LDM file", "checkpoint") else ()
    if told:
        with pytest.raises(ConfigError, match=r"does not tell how many groups.*1 or 2 or 4 or 8"):
            fine_tuning(tiny, place, cls=cls)
    config = fine_tuning(tiny, place, *told, cls=cls)
    assert config.model.block_out_channels == (8, 16)
    assert config.model.norm_num_groups == 8
    networks = start(config)
    assert_holds(networks.autoencoder, pretrained)
    assert_holds(networks.ema.model, pretrained)
    scale = None if told else 0.37
    frozen = start(fine_tuning(tiny, place, "freeze_encoder=true", *told, cls=cls))
    assert ("does not record the scale of its latents" in "\n".join(frozen.describe())) == (scale is None)
    assert networks.autoencoder.config.scaling_factor == networks.ema.model.config.scaling_factor == scale
    record = networks.pretrained.record
    assert (record["pretrained"], record["sha256"]) == (place, fingerprint(pretrained.state_dict()))


def test_the_number_of_groups_that_a_file_does_not_show_is_the_config_s(tiny, tmp_path):
    pretrained = make_pretrained(norm_num_groups=4)
    place = write_pretrained(pretrained, tmp_path, "LDM file")
    networks = start(fine_tuning(tiny, place, "model.norm_num_groups=4"))
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(networks.autoencoder(images).sample, pretrained(images).sample)


def test_all_that_scales_latents_comes_along(tiny, tmp_path):
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    pretrained = make_pretrained(scaling_factor=2.0, shift_factor=0.5, force_upcast=True, **statistics)
    networks = start(fine_tuning(tiny, write_pretrained(pretrained, tmp_path, "diffusers folder")))
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for model in (networks.autoencoder, networks.ema.model):
        latents = [m.to_latents(images, torch.Generator().manual_seed(0)) for m in (model, pretrained)]
        assert torch.equal(*latents)
        assert model.config.force_upcast is True


def test_other_latents_have_no_scale_yet(tiny, tmp_path):
    place = write_pretrained(make_pretrained(), tmp_path, "our folder")
    networks = start(fine_tuning(tiny, place, "model.latent_channels=6"))
    assert networks.autoencoder.config.scaling_factor == 1.0
    assert networks.pretrained.record["adapted"][0] == (
        "encoder.conv_out.weight [8, 16, 3, 3] -> [12, 16, 3, 3]: 4 new outputs fresh"
    )


def test_four_image_channels_reconstruct_three_as_before(tiny, tmp_path):
    pretrained = make_pretrained()
    place = write_pretrained(pretrained, tmp_path, "our folder")
    networks = start(fine_tuning(tiny, place, "model.in_channels=4"))
    images = torch.rand(1, 4, 16, 16) * 2 - 1
    with torch.no_grad():
        sample = networks.autoencoder(images).sample
        torch.testing.assert_close(sample[:, :3], pretrained(images[:, :3]).sample, rtol=1e-4, atol=1e-5)
    lines = "\n".join(networks.describe())
    assert "encoder.conv_in.weight [8, 3, 3, 3] -> [8, 4, 3, 3]: 1 new inputs at zero" in lines
    assert "decoder.conv_out.bias [3] -> [4]: 1 new outputs fresh" in lines


def test_a_plain_autoencoder_has_no_posterior_left(tiny, tmp_path):
    place = write_pretrained(make_pretrained(), tmp_path, "our folder")
    networks = start(fine_tuning(tiny, place, "loss.kl=null"))
    for model in (networks.autoencoder, networks.ema.model):
        assert (model.encode(torch.zeros(1, 3, 16, 16)).latent_dist.logvar == -30).all()


def test_an_ema_codebook_s_averages_begin_at_its_codes(tiny, tmp_path):
    pretrained = make_pretrained(VQVAE)
    place = write_pretrained(pretrained, tmp_path, "diffusers folder")
    networks = start(fine_tuning(tiny, place, "model.quantizer.type=ema", cls=VQVAE))
    assert torch.equal(networks.quantizer.average_sums, pretrained.quantize.embedding.weight)


def test_the_record_is_all_that_a_resume_needs(tiny, tmp_path):
    place = write_pretrained(make_pretrained(), tmp_path, "our folder")
    config = fine_tuning(tiny, place)
    first = start(config)
    resumed = build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    resumed.pretrained.load_state_dict(json.loads(json.dumps(first.pretrained.state_dict())))
    assert resumed.autoencoder.config.scaling_factor == resumed.ema.model.config.scaling_factor == 0.37
    resumed.pretrained.write(tmp_path)
    assert json.loads((tmp_path / "pretrained.json").read_text()) == first.pretrained.record


def test_the_fingerprint_is_of_names_shapes_and_values():
    weight = torch.arange(6.0).view(2, 3)
    states = [
        {"a": weight},
        {"b": weight},
        {"a": weight.view(3, 2)},
        {"a": weight + 1e-6},
        {"a": weight, "b": weight},
    ]
    assert len({fingerprint(state) for state in states}) == 5
    assert fingerprint({"a": weight, "b": weight}) == fingerprint({"b": weight, "a": weight.clone()})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model.block_out_channels=[8, 32]"],
            r"`model\.block_out_channels` is \[8, 32\], and \[8, 16\] there",
        ),
        (["model.mid_block_attention=false"], "`model.mid_block_attention` is False, and True there"),
        (
            ["freeze_encoder=true", "model.latent_channels=6"],
            "`model.latent_channels` is 6, and 4 there, and freeze_encoder keeps latents as they are",
        ),
    ],
)
def test_a_model_that_does_not_fit(tiny, tmp_path, overrides, says):
    place = write_pretrained(make_pretrained(), tmp_path, "our folder")
    config = fine_tuning(tiny, place, *overrides)
    with pytest.raises(ValueError, match=rf"^`model\.pretrained` is {place}, which cannot be used: .*{says}"):
        Trainer(config)
    assert not (tmp_path / "run").exists()


def test_places_without_a_model(tiny, tmp_path):
    AutoencoderTiny().save_pretrained(tmp_path / "taesd")
    (tmp_path / "notes.txt").write_text("no weights")
    write_pretrained(make_pretrained(VQGAN), tmp_path, "our folder")
    for place, says in {
        tmp_path / "nowhere": "there is no file or folder",
        tmp_path / "images": "no model in",
        tmp_path / "notes.txt": "is not a file of weights",
        tmp_path / "taesd": r"holds a TinyAutoencoder, another architecture; use model\.class=Tiny",
        tmp_path / "ours": r"holds a VQGAN; name another model there, or use train_vq_vae\.py",
        "owner/name": "'owner/name' is no path here, and .* the hub cannot be reached",
    }.items():
        with pytest.raises(ValueError, match=rf"`model\.pretrained` .*{says}") as caught:
            fine_tuning(tiny, place)
        assert len(str(caught.value).splitlines()) == 1


def test_codes_that_were_learned_are_not_placed_anew(tiny, tmp_path):
    pretrained = make_pretrained(VQVAE)
    place = write_pretrained(pretrained, tmp_path, "diffusers folder")
    trainer = Trainer(fine_tuning(tiny, place, "model.quantizer.init=data", cls=VQVAE))
    next(trainer.batches())
    assert torch.equal(trainer.networks.quantizer.embedding.weight, pretrained.quantize.embedding.weight)


@pytest.mark.parametrize("cls", [KLVAE, VQGAN])
@pytest.mark.parametrize("frozen", [True, False])
def test_latents_that_move_are_told_at_the_start(tiny, tmp_path, cls, frozen):
    place = write_pretrained(make_pretrained(cls), tmp_path, "our folder")
    lines = start(fine_tuning(tiny, place, f"freeze_encoder={str(frozen).lower()}", cls=cls)).describe()
    assert any("the latents move" in line and "freeze_encoder=true" in line for line in lines) != frozen


def test_a_pretrained_model_that_moved_is_known_by_its_weights(tiny, tmp_path):
    few = ("max_steps=1", "checkpoint_every=1")
    moved = Path(write_pretrained(make_pretrained(), tmp_path, "our folder")).rename(tmp_path / "moved")
    Trainer(fine_tuning(tiny, moved, *few)).fit()
    stock = write_pretrained(make_pretrained(), tmp_path, "diffusers folder")
    branch = (f"resume={tmp_path}/run/checkpoints/step_000001", f"output_dir={tmp_path}/branch")
    for go_on in ((), branch):
        assert Trainer(fine_tuning(tiny, stock, "max_steps=2", *go_on)).step == 1
        place = tmp_path / ("branch" if go_on else "run") / "pretrained.json"
        assert json.loads(place.read_text())["pretrained"] == stock

    other = make_pretrained()
    torch.nn.init.ones_(other.encoder.conv_in.weight)
    other.save_pretrained(tmp_path / "other")
    for go_on in ((), branch):
        with pytest.raises(ValueError, match=r"`model\.pretrained` is .*other, which has other weights than"):
            Trainer(fine_tuning(tiny, tmp_path / "other", "max_steps=2", *go_on))


def test_a_dry_run_tells_that_latents_move(tiny, tmp_path):
    place = write_pretrained(make_pretrained(), tmp_path, "our folder")
    assert "freeze_encoder=true" in dry_run(fine_tuning(tiny, place))
