import copy
import math

import datasets
import numpy as np
import pytest
import torch
from torchvision.models import resnet50, vgg16
from transformers import Dinov2Config, Dinov2Model

from latentae import VQGAN, VQVAE, build
from latentae.config import config_from_mapping, load_config
from latentae.data import BrokenImageError, ImageStream, training_loader
from latentae.losses.adversarial import ADVERSARIAL_LOSSES
from latentae.losses.kl import FreeBits, forward_kl, jeffreys
from latentae.losses.perceptual import LPIPS
from latentae.quantizers import QUANTIZERS, EMAQuantizer, VectorQuantizer
from latentae.weights import WeightsNotFoundError
from tests.data.pictures import png_bytes, shows_green, write_cutout, write_shards, write_tar


@pytest.fixture(scope="module")
def quickstart():
    return load_config("vqgan", [])


def test_the_quickstarts_model(quickstart):
    model = build.build_autoencoder(quickstart.model, sample_size=64)
    assert type(model) is VQGAN
    assert model.downsampling_factor == quickstart.model.downsampling_factor == 4
    assert model.config.block_out_channels == tuple(quickstart.model.block_out_channels)
    assert model.quantize.num_codes == 4096
    assert model.quantize.revive_after == quickstart.model.quantizer.revive_after
    assert model(torch.zeros(1, 3, 64, 64)).indices.shape == (1, 16, 16)


@pytest.mark.parametrize(("kind", "expected"), [("vector", VectorQuantizer), ("ema", EMAQuantizer)])
def test_quantizers_get_their_arguments(kind, expected):
    config = load_config("vqgan", [f"model.quantizer.type={kind}", "model.quantizer.commitment_weight=0.5"])
    quantizer = build.build_autoencoder(config.model, 64).quantize
    assert type(quantizer) is expected
    assert quantizer.commitment_weight == 0.5


@pytest.mark.parametrize(
    ("quantizer", "codes", "code_dim"),
    [
        ("{type: fsq, levels: [8, 5, 5]}", 200, 3),
        ("{type: bsq, bits: 6}", 64, 6),
        ("{type: residual, depth: 2, member: {type: cosine, num_codes: 32, code_dim: 8}}", 32, 8),
        ("{type: grouped, groups: 2, member: {type: simvq, num_codes: 32, code_dim: 3}}", 32, 6),
        ("{type: grouped, groups: 2, member: {type: vector, num_codes: 32}}", 32, 4),
        ("{type: grouped, groups: 2, member: {type: lfq, bits: 3}}", 8, 6),
    ],
)
def test_quantizers_of_every_kind_get_their_sizes(quantizer, codes, code_dim):
    config = load_config("vqgan", [f"model.quantizer={quantizer}"])
    model = build.build_autoencoder(config.model, 64)
    assert (model.num_codes, model.latents_channels) == (codes, code_dim)
    assert model.config.num_vq_embeddings == codes
    kind = config.model.quantizer.type
    assert type(model.quantize) is QUANTIZERS[kind]
    if kind in ("residual", "grouped"):
        member = config.model.quantizer.member.type
        assert [type(part) for part in model.quantize.members] == [QUANTIZERS[member]] * 2
    output = model(torch.zeros(1, 3, 16, 16))
    assert output.indices.shape == (1, *model.indices_shape(16, 16))


def test_arguments_reach_a_quantizer_and_its_members():
    member = "{type: ema, num_codes: 8, decay: 0.5, gradient: rotation}"
    config = load_config(
        "vqgan", [f"model.quantizer={{type: residual, depth: 2, dropout: 0.25, member: {member}}}"]
    )
    quantizer = build.build_autoencoder(config.model, 64).quantize
    assert (quantizer.dropout, quantizer.depth) == (0.25, 2)
    assert [(part.decay, part.gradient) for part in quantizer.members] == [(0.5, "rotation")] * 2


def test_attention_levels_mirror_in_the_decoder():
    config = load_config("vqgan", ["model.attention_levels=[false, false, true]"])
    model = build.build_autoencoder(config.model, 64)
    assert model.config.down_block_types[2] == "AttnDownEncoderBlock2D"
    assert model.config.up_block_types[0] == "AttnUpDecoderBlock2D"
    assert model(torch.zeros(1, 3, 16, 16)).sample.shape == (1, 3, 16, 16)


FOLLOWED = pytest.mark.parametrize(
    ("given", "bfloat16", "precision"),
    [
        (None, False, "float32"),
        (None, True, "bfloat16"),
        ("float32", True, "float32"),
        ("bfloat16", False, "bfloat16"),
    ],
)


@FOLLOWED
def test_lpips_follows_the_precision_of_the_run(loss_config, alexnet_trunk, given, bfloat16, precision):
    perceptual = {"type": "lpips", "trunk": "alex", "precision": given}
    objective = build.build_objective(loss_config(perceptual=perceptual), bfloat16=bfloat16)
    assert objective.perceptual.precision == precision


@FOLLOWED
@pytest.mark.parametrize("network", ["vgg16", "some/transformer"])
def test_the_features_to_align_with_follow_the_precision_of_the_run(
    monkeypatch, given, bfloat16, precision, network
):
    with torch.device("meta"):
        trunk = vgg16(weights=None).features.state_dict(prefix="features.")
    trunk = {name: torch.empty_like(value, device="cpu") for name, value in trunk.items()}
    monkeypatch.setattr(build, "load_trunk", lambda name: trunk)
    monkeypatch.setattr(build, "load_vision_transformer", lambda place: transformer())
    alignment = f"loss.alignment={{network: {network}, precision: {given or 'null'}}}"
    config = load_config("kl_vae", [alignment])
    assert build.build_feature_maps(config, bfloat16=bfloat16).precision == precision


def transformer():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=8, patch_size=2))


def test_losses_and_discriminator(quickstart, alexnet_trunk):
    objective = build.build_objective(quickstart.loss)
    assert isinstance(objective.perceptual, LPIPS)
    assert objective.perceptual_weight == quickstart.loss.perceptual.weight
    terms = build.build_adversarial_terms(quickstart)
    assert (terms.weight, terms.start_step) == (
        quickstart.loss.adversarial.weight,
        quickstart.loss.adversarial.start_step,
    )
    discriminator = build.build_discriminator(quickstart)
    assert discriminator(torch.zeros(1, 3, 64, 64)).shape[1] == 1


def test_every_discriminator_gets_its_arguments(tmp_path, monkeypatch, alexnet_trunk):
    wavelet = load_config("vqgan", ["discriminator.type=wavelet", "discriminator.num_layers=4"])
    assert len(build.build_discriminator(wavelet).entries) == 4
    transformer().save_pretrained(tmp_path)
    sizes = {"alex": [(192, 384, 256, 256), (2, 4, 3, 3)], str(tmp_path): [(16,), (2, 1, 5, 5)]}
    for network, (channels, shape) in sizes.items():
        changes = [f"discriminator.{key}" for key in (f"network={network}", "head_channels=16")]
        config = load_config("vqgan", ["discriminator.type=frozen_features", *changes])
        discriminator = build.build_discriminator(config)
        assert discriminator.trunk.channels == channels
        assert discriminator.heads[0][0].out_channels == 16
        assert (
            discriminator(torch.zeros(2, 3, 64, 64) if network == "alex" else torch.zeros(2, 3, 9, 9)).shape
            == shape
        )
    monkeypatch.setattr(build, "load_trunk", lambda name: {"vgg": alexnet_trunk}[name])
    with pytest.raises(ValueError, match="net='vgg'"):
        build.build_discriminator(load_config("vqgan", ["discriminator.type=frozen_features"]))


def test_a_classifier_s_logits_join_lpips(loss_config, alexnet_trunk, tmp_path):
    torch.manual_seed(0)
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "own.pth")
    torch.save({"fc.bias": torch.zeros(1000)}, tmp_path / "other.pth")
    perceptual = {"type": "lpips_logits", "trunk": "alex", "classifier": "resnet50", "logits_weight": 0.5}
    own = loss_config(perceptual={**perceptual, "classifier_weights": str(tmp_path / "own.pth")})
    network = build.build_objective(own, bfloat16=True).perceptual
    assert (network.logits_weight, network.precision, network.logits.precision) == (0.5, *["bfloat16"] * 2)
    assert network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)).shape == (1,)
    half = {name: value.half() for name, value in resnet50(weights=None).state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    halved = loss_config(perceptual={**perceptual, "classifier_weights": str(tmp_path / "half.pth")})
    network = build.build_objective(halved).perceptual
    assert network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)).dtype == torch.float32
    other = loss_config(perceptual={**perceptual, "classifier_weights": str(tmp_path / "other.pth")})
    with pytest.raises(
        WeightsNotFoundError, match=r"classifier_weights` is .*other\.pth.*hold torchvision's"
    ):
        build.build_objective(other)


def test_the_adversarial_terms_get_their_arguments():
    config = load_config(
        "vqgan",
        [
            "loss.adversarial.type=least_squares",
            "loss.adversarial.ramp_steps=7",
            "loss.adversarial.min_adaptive_weight=0.25",
            "discriminator.update_every=3",
        ],
    )
    terms = build.build_adversarial_terms(config)
    assert terms.loss is ADVERSARIAL_LOSSES["least_squares"]
    assert (terms.ramp_steps, terms.min_adaptive_weight, terms.update_every) == (7, 0.25, 3)


@pytest.fixture
def loss_config():
    def config(**loss):
        mapping = load_config("kl_vae", []).model_dump(mode="json", by_alias=True)
        mapping["loss"] |= {"perceptual": None, **loss}
        return config_from_mapping(mapping).loss

    return config


def test_reconstruction_losses_get_their_arguments(loss_config):
    images, reconstruction = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.75)
    expected = {
        "l1": ({}, 0.75),
        "l2": ({}, 0.5625),
        "charbonnier": ({"epsilon": 1.0}, 1.25),
        "gaussian": ({"log_variance": -1.0}, 0.5 * (0.5625 * math.e - 1 + math.log(2 * math.pi))),
        "laplace": ({"log_scale": -1.0, "learned": False}, 0.75 * math.e - 1 + math.log(2)),
    }
    for kind, (arguments, value) in expected.items():
        config = loss_config(reconstruction={"type": kind, "weight": 2.0, **arguments})
        objective = build.build_objective(config)
        loss, terms = objective(reconstruction, images)
        assert terms["reconstruction"].item() == pytest.approx(value)
        assert loss.item() == pytest.approx(2 * value)
        learned = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
        assert learned == (["reconstruction.log_dispersion"] if kind == "gaussian" else [])


def test_the_perceptual_loss_within_a_likelihood(loss_config, alexnet_trunk):
    perceptual = {"type": "lpips", "trunk": "alex"}
    for scale in (False, True):
        reconstruction = {"type": "laplace", "scale_perceptual": scale}
        objective = build.build_objective(loss_config(reconstruction=reconstruction, perceptual=perceptual))
        assert objective.scale_perceptual is scale
        names = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
        assert names == ["reconstruction.log_dispersion"]


def test_the_kl_term(loss_config):
    kl = {
        "weight": 0.1,
        "divergence": "jeffreys",
        "schedule": {"type": "cyclical", "cycle_steps": 10, "cycles": 2, "ratio": 0.8},
        "free_bits": {"nats": 0.5, "per": "image"},
    }
    regulariser = build.build_regulariser(loss_config(kl=kl))
    assert [regulariser.weight_at(step) for step in (0, 4, 8, 14, 20)] == pytest.approx(
        [0.0, 0.05, 0.1, 0.05, 0.1]
    )
    assert regulariser.divergence is jeffreys
    assert regulariser.free_bits == FreeBits(0.5, "image")
    linear = loss_config(kl={"weight": 1.0, "schedule": {"type": "linear", "warmup_steps": 4}})
    assert build.build_regulariser(linear).weight_at(1) == 0.25
    plain = build.build_regulariser(loss_config(kl={"weight": 0.3}))
    assert (plain.weight_at(0), plain.divergence, plain.free_bits) == (0.3, forward_kl, None)
    assert build.build_regulariser(loss_config(kl=None)) is None


def test_a_vq_vae_has_no_discriminator(quickstart):
    mapping = quickstart.model_dump(mode="json", by_alias=True)
    mapping["model"]["class"] = "VQVAE"
    mapping["loss"] |= {"adversarial": None, "perceptual": None}
    mapping["discriminator"] = None
    config = config_from_mapping(mapping)
    assert type(build.build_autoencoder(config.model, 64)) is VQVAE
    assert build.build_discriminator(config) is None
    assert build.build_objective(config.loss).perceptual is None


def test_datasets(quickstart):
    sources = build.build_sources(quickstart.data)
    train, validation = build.build_datasets(sources, quickstart.data, channels=3, seed=0)
    assert (len(train), len(validation)) == (11, 36)
    assert train[0, 0]["images"].shape == validation[0, 0]["images"].shape == (3, 64, 64)
    assert torch.equal(validation[0, 5]["images"], validation[3, 5]["images"])


def test_colours_of_training_images_alone_are_changed(quickstart):
    plain = quickstart.model_dump(mode="json", by_alias=True)
    plain["data"]["color_jitter"] = None
    jittered = copy.deepcopy(plain)
    jittered["data"]["color_jitter"] = {"probability": 1.0, "hue": 0.5, "brightness": 0.1}
    datasets = []
    for mapping in (plain, jittered):
        data = config_from_mapping(mapping).data
        datasets.append(build.build_datasets(build.build_sources(data), data, channels=3, seed=0))
    (plain_training, plain_validation), (training, validation) = datasets
    for number in range(5):
        same = torch.equal(plain_training[0, number]["images"], training[0, number]["images"])
        assert not same
        assert torch.equal(plain_validation[0, number]["images"], validation[0, number]["images"])


def test_arrays_are_resized_by_their_alpha(tmp_path):
    for split in ("train", "val"):
        write_cutout(tmp_path / split / "a.npy", side=100)
    changes = ["model.in_channels=4", "data.alpha=true", f"data.name={tmp_path}", "data.image_size=48"]
    config = load_config("kl_vae", [*changes, "data.downscale=null"])
    sources = build.build_sources(config.data)
    for dataset in build.build_datasets(sources, config.data, channels=4, seed=0):
        assert not shows_green(dataset[0, 0]["images"])


def test_datasets_of_several_resolutions():
    config = load_config("vqgan", ["data.resolutions=[[64, 96], [96, 64]]", "data.max_validation=5"])
    train, validation = build.build_datasets(
        build.build_sources(config.data), config.data, channels=3, seed=0
    )
    assert [train[0, 0, number]["images"].shape for number in range(2)] == [(3, 64, 96), (3, 96, 64)]
    assert train[0, 0]["images"].shape == validation[0, 0]["images"].shape == (3, 64, 64)
    assert len(validation) == 5


def test_datasets_of_a_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "shards", [6, 6])
    changes = [f"data.name={tmp_path}/shards", "data.streaming=true", "data.holdout=0.5"]
    config = load_config("vqgan", [*changes, "data.shuffle_block=7", "data.max_validation=5"])
    train, validation = build.build_datasets(
        build.build_sources(config.data), config.data, channels=3, seed=3
    )
    assert (type(train), train.shuffle_block, train.seed) == (ImageStream, 7, 3)
    assert train.held_out == {0: 3, 1: 2}
    assert [validation.name(index) for index in (0, 4)] == [
        "train-000.tar/0000.png",
        "train-001.tar/0001.png",
    ]
    batch = next(iter(training_loader(train, batch_size=2)))
    assert batch["images"].shape == (2, 3, 64, 64)


def test_the_largest_picture_reaches_every_kind_of_data(tmp_path):
    members = {f"{number}.png": png_bytes(number, side=64) for number in range(40)}
    write_tar(tmp_path / "tar" / "a.tar", members)
    (tmp_path / "folder").mkdir()
    for name, data in members.items():
        (tmp_path / "folder" / name).write_bytes(data)
    rows = {"image": [{"bytes": data, "path": None} for data in members.values()]}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table" / "a.parquet")
    for kind in ("tar", "folder", "table"):
        overrides = [f"data.name={tmp_path / kind}", "data.image_size=32", "data.max_pixels=4095"]
        sources = build.build_sources(load_config("vqgan", overrides).data)
        with pytest.raises(BrokenImageError, match=r"64 by 64 are 4096 pixels.*data\.max_pixels"):
            sources.train.load(0, 3)


def test_the_memory_for_decoded_images_is_for_a_machine(tmp_path, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png_bytes(number))
    data = load_config("vqgan", [f"data.name={tmp_path}", "data.cache_megabytes=64"]).data
    sources = build.build_sources(data)
    assert (sources.train.max_bytes >> 20, sources.validation.max_bytes >> 20) == (48, 16)
    monkeypatch.setattr(build.distributed, "local_world_size", lambda: 4)
    sources = build.build_sources(data)
    assert (sources.train.max_bytes >> 20, sources.validation.max_bytes >> 20) == (12, 4)


def test_the_value_range_reaches_the_images(tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((64, 64, 3), 30, np.int16))
    changes = ["data.value_range=[20, 30]", "data.color_jitter=null"]
    config = load_config("vqgan", [f"data.name={tmp_path}", *changes])
    for dataset in build.build_datasets(build.build_sources(config.data), config.data, channels=3, seed=0):
        assert torch.equal(dataset[0, 0]["images"], torch.ones(3, 64, 64))
