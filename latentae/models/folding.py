"""Another scale and origin for a model's raw latents, with the same pixels: it is moved into the weights.

Most pipelines know a single ``scaling_factor`` and nothing else. A mean of the latents, a standard deviation
by channel, or the constants that another program expects therefore go into the convolutions around the
latents: with z' = (z − shift) · scale, ``quant_conv`` puts out z' and ``post_quant_conv`` takes it.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import SpatialNorm
from torch import Tensor, nn

from latentae.devices import to_float64_on_cpu
from latentae.models.kl import KLVAE
from latentae.models.vq import VQVAE
from latentae.quantizers import Quantizer, VectorQuantizer, plain_quantizer

_Changes = list[tuple[Tensor, Tensor]]  # parameters and their new values in float64


@torch.no_grad()
def fold_normalisation(
    model: KLVAE | VQVAE, shift: float | Tensor, scale: float | Tensor, *, add_convs: bool = False
) -> None:
    """Changes the model in place so that its raw latents become z' = (z − shift) · scale.

    Images decode as before, exact but for rounding, which happens once, from float64 to the dtype of the
    weights: fold in float32 and cast afterwards where there is a choice. A KL-VAE's log-variance grows by
    2 log scale. diffusers' posterior clamps it to [−30, 20]; only beyond these limits, at standard deviations
    under 3e-7 or over 2e4, is the noise of a sample not carried over. A VQ model's codebook moves along, so
    that indices stay what they were; an EMA quantizer's averages begin anew at the moved codes. Codes that
    cannot move by themselves, those of a cosine quantizer, are first written out as a plain codebook.

    ``scaling_factor``, ``shift_factor``, ``latents_mean`` and ``latents_std`` of the config are left alone:
    they speak of raw latents, which have changed, and only the caller knows what the new ones shall be. To
    keep ``to_latents`` what it was, set scaling_factor / scale and (shift_factor − shift) · scale in their
    place.

    Args:
        model: its parameters keep their identity, dtype and device.
        shift: a number, or [c] one for each latent channel, in units of the present latents.
        scale: a positive number, or [c]; for a VQ model the same for all channels, since anything else
            would change which code is nearest.
        add_convs: give a KL-VAE that lacks ``quant_conv`` or ``post_quant_conv`` the missing one, and say so
            in its config. Otherwise it is refused, since its architecture would change.

    Raises:
        ValueError: a shift or scale of another length or not finite; a scale that is not positive, or differs
            by channel for a VQ model; convolutions that are missing; a quantizer whose codes cannot move;
            values that overflow the dtype of the weights. The model is then as it was.
    """
    channels = model.config.latent_channels if isinstance(model, KLVAE) else _code_dim(model)
    shifts = _by_channel("shift", shift, channels)
    scales = _by_channel("scale", scale, channels)
    if not bool((scales > 0).all()):
        raise ValueError(f"scale is {scales.tolist()}, but must be positive in every channel")
    if isinstance(model, VQVAE) and not bool((scales == scales[0]).all()):
        raise ValueError(
            f"scale is {scales.tolist()}, but a VQ model takes one scale for all channels, since another in "
            "each would change which code is nearest. Fold one number, or the shift alone"
        )
    added = _missing_convs(model, add_convs) if isinstance(model, KLVAE) else {}
    quant_conv = added.get("quant_conv", model.quant_conv)
    post_quant_conv = added.get("post_quant_conv", model.post_quant_conv)
    changes = _quant_conv(quant_conv, shifts, scales) + _taking_conv(post_quant_conv, shifts, scales)
    for norm in (module for module in model.decoder.modules() if isinstance(module, SpatialNorm)):
        # These see the codes, too.
        changes += _taking_conv(norm.conv_y, shifts, scales) + _taking_conv(norm.conv_b, shifts, scales)
    if isinstance(model, VQVAE):
        quantizer, moved = _moved_codes(model.quantize, shifts, scales[0])
        changes += moved
    _check_overflow(changes)

    for parameter, value in changes:
        parameter.copy_(value)
    if isinstance(model, VQVAE):
        if isinstance(quantizer, VectorQuantizer) and quantizer is not model.quantize:
            model.use_plain_codebook(quantizer)
        quantizer.weights_changed()  # an EMA quantizer's averages, or its next step would undo the move
    for name, conv in added.items():
        setattr(model, name, conv)
        model.change_config(**{f"use_{name}": True})


def codes_can_move(quantizer: Quantizer) -> bool:
    """Whether the codes can follow another scale and origin of the latents, if need be written out."""
    origin = torch.zeros(quantizer.code_dim, dtype=torch.float64)
    return quantizer.is_euclidean or quantizer.moved_weights(origin, torch.ones_like(origin[0])) is not None


def _code_dim(model: VQVAE) -> int:
    if not codes_can_move(model.quantize):
        raise ValueError(
            f"the model's quantizer is a {type(model.quantize).__name__}, whose codes cannot move along: set "
            "shift_factor and scaling_factor in its config instead"
        )
    return model.quantize.code_dim


def _by_channel(name: str, value: float | Tensor, channels: int) -> Tensor:
    """[c] on the CPU in float64."""
    values = to_float64_on_cpu(torch.as_tensor(value).detach())
    if values.shape not in ((), (1,), (channels,)):
        raise ValueError(f"{name} has shape {list(values.shape)}, but must be a number or [{channels}]")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} is {values.tolist()}, but must be finite")
    return values.expand(channels)


def _missing_convs(model: KLVAE, add: bool) -> dict[str, nn.Conv2d]:
    """Identities for the convolutions that the model lacks, by name."""
    channels = model.config.latent_channels
    sizes = {"quant_conv": 2 * channels, "post_quant_conv": channels}  # the former: mean and log-variance
    missing = {name: size for name, size in sizes.items() if getattr(model, name) is None}
    if missing and not add:
        raise ValueError(
            f"the model has no {' and no '.join(missing)} to fold a normalisation into: set shift_factor and "
            "scaling_factor in its config, or pass add_convs=True to add them, which changes its architecture"
        )
    like = model.encoder.conv_out.weight
    return {name: _identity_conv(size).to(like).train(model.training) for name, size in missing.items()}


def _identity_conv(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(_bias(conv))
    return conv


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # diffusers makes none without
    return conv.bias


def _precise(parameter: Tensor) -> Tensor:
    """Its values, on the CPU."""
    return to_float64_on_cpu(parameter.detach())


def _quant_conv(conv: nn.Conv2d, shift: Tensor, scale: Tensor) -> _Changes:
    """Scales and moves the rows of the latents; rows of log-variances, where they follow, grow by 2 log s."""
    weight, bias = _precise(conv.weight), _precise(_bias(conv))
    rows = len(scale)
    new_weight = torch.cat([weight[:rows] * scale[:, None, None, None], weight[rows:]])
    log_variance = bias[rows:] + 2 * scale.log() if len(bias) > rows else bias[rows:]
    return [
        (conv.weight, new_weight),
        (_bias(conv), torch.cat([(bias[:rows] - shift) * scale, log_variance])),
    ]


def _taking_conv(conv: nn.Conv2d, shift: Tensor, scale: Tensor) -> _Changes:
    """A 1×1 convolution that takes z' where it took z = z' / scale + shift."""
    weight, bias = _precise(conv.weight), _precise(_bias(conv))
    return [
        (conv.weight, weight / scale[:, None, None]),
        (_bias(conv), bias + weight[:, :, 0, 0] @ shift),
    ]


def _moved_codes(quantizer: Quantizer, shift: Tensor, scale: Tensor) -> tuple[Quantizer, _Changes]:
    """A quantizer whose codes can move, this one if it is one, and how its weights change."""
    moved = quantizer.moved_weights(shift, scale)
    if moved is None:
        quantizer = plain_quantizer(quantizer)
        moved = quantizer.moved_weights(shift, scale)
    assert moved is not None  # _code_dim has seen to it
    return quantizer, moved


def _check_overflow(changes: _Changes) -> None:
    for parameter, value in changes:
        largest = value.abs().max().item()
        if not largest <= torch.finfo(parameter.dtype).max:
            raise ValueError(
                f"folded weights reach {largest:.3g}, which {parameter.dtype} does not hold: "
                "fold in float32, or by a scale nearer to 1"
            )
