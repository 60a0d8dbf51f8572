import copy

import pytest
import torch
from diffusers import AutoencoderKL

from latentae import KLVAE, VQGAN, VQVAE
from latentae.models.folding import fold_normalisation
from tests.models.conftest import make

SHIFT = torch.tensor([0.5, -1.0, 2.0, 0.25])
SCALE = torch.tensor([0.5, 4.0, 1.0, 0.18215])


def make_kl(latent_channels=4, **changes):
    torch.manual_seed(0)
    arguments = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": latent_channels,
    }
    return KLVAE(**{**arguments, **changes}).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def closeness(result, expected):
    return (result - expected).abs().max().item()


def test_a_1x1_case_by_hand():
    model = make_kl(latent_channels=1)
    with torch.no_grad():
        model.quant_conv.weight.copy_(torch.tensor([[2.0, 1.0], [3.0, 4.0]])[:, :, None, None])
        model.quant_conv.bias.copy_(torch.tensor([1.0, -2.0]))
        model.post_quant_conv.weight.fill_(6.0)
        model.post_quant_conv.bias.fill_(1.0)
    fold_normalisation(model, 3.0, 0.5)
    # The mean's row (2, 1 | 1) − 3, halved; the log-variance's row as it was, its bias + 2 log ½.
    assert model.quant_conv.weight[:, :, 0, 0].tolist() == [[1.0, 0.5], [3.0, 4.0]]
    assert model.quant_conv.bias.tolist() == pytest.approx([-1.0, -2.0 - 2 * 0.693147], abs=1e-6)
    # 6 (2 z' + 3) + 1
    assert model.post_quant_conv.weight.item() == 12.0
    assert model.post_quant_conv.bias.item() == 19.0


@pytest.mark.parametrize("convs", [True, False])
@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("by_channel", [True, False])
def test_kl_latents_move_and_pixels_stay(images, convs, channels, by_channel):
    model = make_kl(channels, use_quant_conv=convs, use_post_quant_conv=convs)
    shift = SHIFT.repeat(channels // 4) if by_channel else 0.75
    scale = SCALE.repeat(channels // 4) if by_channel else 3.0
    before = model.encode(images).latent_dist
    pixels, drawn = model(images).sample, model.decode(before.sample(torch.manual_seed(3))).sample
    fold_normalisation(model, shift, scale, add_convs=not convs)
    after = model.encode(images).latent_dist

    column = torch.as_tensor(scale).reshape(-1, 1, 1)
    expected = (before.mean - torch.as_tensor(shift).reshape(-1, 1, 1)) * column
    assert closeness(after.mean, expected) < 1e-5
    assert closeness(after.std, before.std * column) < 1e-5
    assert closeness(model(images).sample, pixels) < 1e-5
    assert closeness(model.decode(after.sample(torch.manual_seed(3))).sample, drawn) < 1e-5


def test_beyond_the_clamp_only_the_noise_is_not_carried_over(images):
    model = make_kl()
    with torch.no_grad():
        model.quant_conv.bias[4:] = -60.0
    pixels = model(images).sample
    fold_normalisation(model, 0.0, 0.1)
    posterior = model.encode(images).latent_dist
    assert posterior.std.max().item() == pytest.approx(torch.tensor(-15.0).exp().item())  # not a tenth of it
    assert closeness(model(images).sample, pixels) < 1e-5


def test_missing_convs_are_added_only_on_request(images, tmp_path):
    model = make_kl(use_quant_conv=False, use_post_quant_conv=False)
    untouched = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"no quant_conv and no post_quant_conv .* add_convs=True"):
        fold_normalisation(model, 0.0, 2.0)
    assert model.quant_conv is None
    assert untouched.keys() == model.state_dict().keys()

    pixels = model(images).sample
    fold_normalisation(model, 0.25, 2.0, add_convs=True)
    assert model.config.use_quant_conv
    assert model.config.use_post_quant_conv
    model.save_pretrained(tmp_path)
    stock = AutoencoderKL.from_pretrained(tmp_path).eval()
    assert closeness(stock(images).sample, pixels) < 1e-5

    half = make_kl(use_quant_conv=False)
    with pytest.raises(ValueError, match="has no quant_conv to fold"):
        fold_normalisation(half, 0.0, 2.0)


def test_tiles_go_through_added_convs(images):
    model = make_kl(use_quant_conv=False, use_post_quant_conv=False, sample_size=16)
    model.enable_tiling(mode="blended")
    latents, pixels = model.encode(images).latents, model(images).sample
    fold_normalisation(model, 0.25, 2.0, add_convs=True)
    assert closeness(model.encode(images).latents, (latents - 0.25) * 2) < 1e-5
    assert closeness(model(images).sample, pixels) < 1e-5


@pytest.mark.parametrize("cls", [VQVAE, VQGAN])
@pytest.mark.parametrize("quantizer", ["vector", "ema"])
def test_vq_codebook_moves_along(images, cls, quantizer):
    torch.manual_seed(0)
    model = make(cls, quantizer={"type": quantizer}, vq_embed_dim=4)
    model.quantize.start(model.encode(images).latents, torch.manual_seed(0))
    before = model(images)
    unquantized = model.decode(before.latents, force_not_quantize=True).sample
    assert len(before.indices.unique()) > 10
    fold_normalisation(model, SHIFT, 0.2)
    after = model(images)
    assert closeness(after.latents, (before.latents - SHIFT[:, None, None]) * 0.2) < 1e-5
    assert torch.equal(after.indices, before.indices)
    assert closeness(after.sample, before.sample) < 1e-5
    assert closeness(model.decode_indices(before.indices), before.sample[..., :16, :24]) < 1e-5
    assert closeness(model.decode(after.latents, force_not_quantize=True).sample, unquantized) < 1e-5


def test_a_decoder_that_sees_the_codes_is_not_misled(images):
    torch.manual_seed(0)
    model = make(norm_type="spatial", block_out_channels=(32, 32), norm_num_groups=32)
    before = model(images)
    fold_normalisation(model, SHIFT, 0.2)
    assert closeness(model(images).sample, before.sample) < 1e-5


def test_ema_training_goes_on_from_the_moved_codes():
    torch.manual_seed(0)
    model = make(quantizer={"type": "ema"})
    codes = model.quantize.embedding.weight.detach().clone()
    fold_normalisation(model, SHIFT, 0.5)
    model.quantize.commit(1, torch.Generator())  # a step in which no code was chosen
    assert closeness(model.quantize.embedding.weight, (codes - SHIFT) * 0.5) < 1e-4


def test_vq_scale_by_channel_is_refused():
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="which code is nearest"):
        fold_normalisation(model, 0.0, SCALE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fold_normalisation(model, 0.0, torch.full((4,), 0.5))  # uniform, though spelt by channel


def test_codes_that_cannot_move_are_refused():
    model = make(num_vq_embeddings=16, quantizer={"type": "lfq", "bits": 4})
    with pytest.raises(ValueError, match="LookupFreeQuantizer, whose codes cannot move along"):
        fold_normalisation(model, 0.0, 1.0)


def test_cosine_codes_are_written_out_and_move(images):
    model = make(quantizer={"type": "cosine"})
    before, indices = model(images).sample, model.encode_indices(images)
    fold_normalisation(model, SHIFT, 0.5)
    assert model.config.quantizer == {"type": "vector"}
    assert torch.equal(model.encode_indices(images), indices)
    assert closeness(model(images).sample, before) < 1e-5


@pytest.mark.parametrize(
    "quantizer",
    [
        {"type": "simvq"},
        {"type": "residual", "depth": 3, "member": {"type": "vector"}},
        {"type": "grouped", "groups": 2, "member": {"type": "simvq"}},
    ],
)
def test_other_codes_move_by_themselves(images, quantizer):
    torch.manual_seed(0)
    model = make(quantizer=quantizer)
    kind = type(model.quantize)
    model.quantize.start(model.encode(images).latents, torch.manual_seed(0))
    before, indices = model(images).sample, model.encode_indices(images)
    fold_normalisation(model, SHIFT, 0.5)
    assert type(model.quantize) is kind
    assert (model.encode_indices(images) == indices).float().mean() > 0.99  # but for ties
    assert closeness(model.decode_indices(indices), before) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_happens_once(dtype):
    model = make_kl()
    half = copy.deepcopy(model).to(dtype)
    reference = copy.deepcopy(half).double()  # the rounded weights, folded without rounding
    fold_normalisation(half, SHIFT, SCALE)
    fold_normalisation(reference, SHIFT, SCALE)
    assert half.quant_conv.weight.dtype == dtype
    for name in ("quant_conv", "post_quant_conv"):
        for kind in ("weight", "bias"):
            expected = getattr(getattr(reference, name), kind).to(dtype)
            assert torch.equal(getattr(getattr(half, name), kind), expected)


def test_parameters_keep_their_identity_and_config_its_numbers():
    model = make_kl(scaling_factor=0.5)
    parameters = [id(p) for p in model.parameters()]
    fold_normalisation(model, 1.0, 2.0)
    assert [id(p) for p in model.parameters()] == parameters
    assert all(p.requires_grad for p in model.parameters())
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.5, 0.0)


def test_to_latents_is_kept_by_the_numbers_the_docstring_gives(images):
    model = make_kl(scaling_factor=0.5, shift_factor=0.25)
    before = model.to_latents(images, torch.manual_seed(0))
    fold_normalisation(model, 2.0, 4.0)
    model.register_to_config(scaling_factor=0.5 / 4.0, shift_factor=(0.25 - 2.0) * 4.0)
    assert closeness(model.to_latents(images, torch.manual_seed(0)), before) < 1e-5


@pytest.mark.parametrize(
    ("shift", "scale", "says"),
    [
        (torch.zeros(3), 1.0, r"shift has shape \[3\], but must be a number or \[4\]"),
        (0.0, torch.ones(2, 2), r"scale has shape \[2, 2\]"),
        (float("nan"), 1.0, "shift is nan, but must be finite"),
        (0.0, 0.0, "must be positive"),
        (0.0, torch.tensor([1.0, 1.0, -1.0, 1.0]), "must be positive"),
    ],
)
def test_numbers_that_make_no_sense(shift, scale, says):
    with pytest.raises(ValueError, match=says):
        fold_normalisation(make_kl(), shift, scale)


def test_overflow_leaves_the_model_as_it_was():
    model = make_kl().half()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"torch\.float16 does not hold"):
        fold_normalisation(model, 0.0, 1e-8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
