import pytest
import torch

from latentae import KLVAE, VQGAN, VQVAE
from latentae.build import build_autoencoder
from latentae.config import config_from_mapping
from latentae.models import TinyAutoencoder
from latentae.models.architecture import architecture_differences, describe_architecture, latent_differences
from tests.config.example import mapping
from tests.models.conftest import make

ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}


def make_with(quantizer, **sizes):
    levels = {name: (f"{part}coderBlock2D",) * 2 for name, part in BLOCKS.items()}
    return VQGAN(block_out_channels=(8, 16), norm_num_groups=4, quantizer=quantizer, **levels, **sizes)


BLOCKS = {"down_block_types": "DownEn", "up_block_types": "UpDe"}


def test_the_words_of_a_kl_vae():
    model = make(KLVAE, in_channels=4, out_channels=4, layers_per_block=3, use_quant_conv=True, **ATTENTION)
    assert describe_architecture(model) == {
        "class": "KLVAE",
        "in_channels": 4,
        "out_channels": None,
        "block_out_channels": [8, 16],
        "layers_per_block": 3,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "attention_levels": [False, True],
        "mid_block_attention": True,
        "use_quant_conv": True,
    }


def test_the_words_of_a_vq_model():
    model = make(VQVAE, out_channels=1, vq_embed_dim=2, quantizer={"type": "ema", "decay": 0.9})
    described = describe_architecture(model)
    assert (described["out_channels"], described["backbone"]) == (1, "stock")
    assert described["quantizer"] == {"type": "ema", "decay": 0.9, "num_codes": 32, "code_dim": 2}
    assert describe_architecture(make(VQGAN))["quantizer"] == {
        "type": "vector",
        "num_codes": 32,
        "code_dim": None,
    }


@pytest.mark.parametrize(
    "model",
    [
        make(KLVAE, use_quant_conv=False, use_post_quant_conv=False, **ATTENTION),
        make(VQGAN, vq_embed_dim=2, mid_block_add_attention=False),
        make_with({"type": "fsq", "levels": [5, 3, 2]}),
        make_with({"type": "residual", "depth": 2, "member": {"type": "vector"}}, vq_embed_dim=3),
        make_with({"type": "grouped", "groups": 2, "member": {"type": "ema"}}, vq_embed_dim=6),
        make_with({"type": "grouped", "groups": 2, "member": {"type": "lfq", "bits": 3}}),
        VQVAE(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, backbone="2017"),
    ],
    ids=["KLVAE", "VQGAN", "FSQ", "residual", "grouped", "grouped LFQ", "VQVAE of 2017"],
)
def test_what_is_described_builds_the_same_model(model):
    kind = type(model).__name__
    loss = {} if kind == "VQGAN" else {"loss.adversarial": None, "discriminator": None}
    config = config_from_mapping(mapping({**loss, "model": describe_architecture(model)}))
    built = build_autoencoder(config.model, sample_size=32)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes
    assert architecture_differences(built, model) == []
    assert latent_differences(built, model) == []


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (TinyAutoencoder(), r"it is a TinyAutoencoder \(TAESD\).* evaluation only"),
        (make(KLVAE, use_quant_conv=False), "its use_post_quant_conv is True, and only False can be trained"),
        (
            make(VQGAN, norm_type="spatial", block_out_channels=(32, 32), norm_num_groups=32),
            "its norm_type is 'spatial', and only 'group' can be trained",
        ),
        (make(KLVAE, act_fn="relu"), "its act_fn is 'relu', and only 'silu' can be trained"),
        (
            make(KLVAE, down_block_types=ATTENTION["down_block_types"]),
            r"attention at other levels \(\[False, True\]\) than its decoder \(\[False, False\]\)",
        ),
        (torch.nn.Linear(1, 1), "it is a Linear"),
    ],
    ids=["TAESD", "one quant conv", "MoVQ", "activation", "attention", "no autoencoder"],
)
def test_what_a_config_has_no_words_for(model, says):
    with pytest.raises(ValueError, match=says):
        describe_architecture(model)


def test_differences_name_key_and_values():
    own, pretrained = make(KLVAE), make(KLVAE, block_out_channels=(8, 32), mid_block_add_attention=False)
    assert [str(difference) for difference in architecture_differences(own, pretrained)] == [
        "`model.block_out_channels` is [8, 16], and [8, 32] there",
        "`model.mid_block_attention` is True, and False there",
    ]


def test_channels_and_codes_are_no_difference_of_architecture():
    own = make(VQGAN, in_channels=4, out_channels=4, latent_channels=8, num_vq_embeddings=7, vq_embed_dim=2)
    pretrained = make(VQVAE, quantizer={"type": "ema"})
    assert architecture_differences(own, pretrained) == []
    assert [str(difference) for difference in latent_differences(own, pretrained)] == [
        "`model.latent_channels` is 8, and 4 there",
        "`model.quantizer.num_codes` is 7, and 32 there",
        "`model.quantizer.code_dim` is 2, and 4 there",
    ]


def test_what_a_quantizer_is_must_be_the_same_and_how_it_learns_not():
    plain, cosine = make(VQGAN), make(VQGAN, quantizer={"type": "cosine"})
    assert [str(difference) for difference in architecture_differences(plain, cosine)] == [
        "`model.quantizer.type` is vector, and cosine there"
    ]
    fsq = [make_with({"type": "fsq", "levels": levels}) for levels in ([5, 3, 2], [2, 3, 5])]
    assert [str(difference) for difference in architecture_differences(*fsq)] == [
        "`model.quantizer.levels` is [5, 3, 2], and [2, 3, 5] there"
    ]
    weights = [make(VQGAN, quantizer={"type": "vector", "commitment_weight": w}) for w in (0.1, 0.9)]
    assert architecture_differences(*weights) == []


def test_groups_keep_the_length_of_their_codes():
    grouped = [
        make_with({"type": "grouped", "groups": 2, "member": {"type": "vector"}}, vq_embed_dim=d)
        for d in (4, 6)
    ]
    assert [str(difference) for difference in architecture_differences(*grouped)] == [
        "`model.quantizer.member.code_dim` is 2, and 3 there"
    ]
    residual = [
        make_with({"type": "residual", "depth": 2, "member": {"type": "vector"}}, vq_embed_dim=d)
        for d in (4, 6)
    ]
    assert architecture_differences(*residual) == []
    assert len(latent_differences(*residual)) == 1
