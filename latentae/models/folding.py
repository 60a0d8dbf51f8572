"""Folds another scale and origin of the raw latents into the weights; the images stay the same.

Most pipelines only know a single ``scaling_factor``. A mean of the latents, a standard deviation per channel,
or the constants that another program expects therefore go into the convolutions around the latents: with z' =
(z − shift) · scale, ``quant_conv`` outputs z' and ``post_quant_conv`` takes it.
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

    Latents decode to the same images up to one rounding from float64 to the dtype of the weights. If you can
    choose, fold in float32 and cast afterwards. A KL-VAE's log-variance grows by 2 log scale. diffusers'
    posterior clamps it to [−30, 20]; only for standard deviations below 3e-7 or above 2e4 do samples lose
    their noise. A VQ model's codes move too, so that indices stay the same, and an EMA quantizer's averages
    restart at the moved codes. A cosine quantizer, whose codes cannot move, is first replaced by a plain
    codebook.

    The config's ``scaling_factor``, ``shift_factor``, ``latents_mean`` and ``latents_std`` do not change.
    They refer to the raw latents, and only the caller knows the new values. To keep the results of
    ``to_latents``, set scaling_factor / scale and (shift_factor − shift) · scale.

    Args:
        model: its parameters keep their identity, dtype and device.
        shift: a number, or one per latent channel [c], in units of the current latents.
        scale: a positive number, or one per latent channel [c]. For a VQ model all channels need the same
            scale, because another one would change which code is nearest.
        add_convs: add ``quant_conv`` or ``post_quant_conv`` to a KL-VAE that lacks them, also in its config.
            Otherwise such a model is refused, because folding would change its architecture.

    Raises:
        ValueError: a shift or scale of another length or not finite; a scale that is not positive, or differs
            between the channels of a VQ model; missing convolutions; a quantizer whose codes cannot move;
            values that overflow the dtype of the weights. Then nothing is changed.
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

    # The new value of every parameter, before any is changed.
    added = _missing_convs(model, add_convs) if isinstance(model, KLVAE) else {}
    quant_conv = added.get("quant_conv", model.quant_conv)
    post_quant_conv = added.get("post_quant_conv", model.post_quant_conv)
    changes = _fold_output(quant_conv, shifts, scales) + _fold_input(post_quant_conv, shifts, scales)
    for norm in (module for module in model.decoder.modules() if isinstance(module, SpatialNorm)):
        # These normalisations also take the codes as input.
        changes += _fold_input(norm.conv_y, shifts, scales) + _fold_input(norm.conv_b, shifts, scales)
    if isinstance(model, VQVAE):
        quantizer = model.quantize
        moved = quantizer.moved_weights(shifts, scales[0])
        if moved is None:
            quantizer = plain_quantizer(quantizer)
            moved = quantizer.moved_weights(shifts, scales[0])
        assert moved is not None  # checked by _code_dim
        changes += moved
    _check_overflow(changes)

    for parameter, value in changes:
        parameter.copy_(value)
    if isinstance(model, VQVAE):
        if isinstance(quantizer, VectorQuantizer) and quantizer is not model.quantize:
            model.use_plain_codebook(quantizer)
        quantizer.weights_changed()  # restarts EMA averages, or the next step would undo the move
    for name, conv in added.items():
        setattr(model, name, conv)
        model.change_config(**{f"use_{name}": True})


def codes_can_move(quantizer: Quantizer) -> bool:
    """Returns whether the codes can follow another scale and origin, if necessary as a plain codebook."""
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
    """Returns the values [c] on the CPU in float64."""
    values = to_float64_on_cpu(torch.as_tensor(value).detach())
    if values.shape not in ((), (1,), (channels,)):
        raise ValueError(f"{name} has shape {list(values.shape)}, but must be a number or [{channels}]")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} is {values.tolist()}, but must be finite")
    return values.expand(channels)


def _missing_convs(model: KLVAE, add: bool) -> dict[str, nn.Conv2d]:
    """Returns identity convolutions for those that the model lacks, by name."""
    channels = model.config.latent_channels
    sizes = {"quant_conv": 2 * channels, "post_quant_conv": channels}  # the former: mean and log-variance
    missing = {name: size for name, size in sizes.items() if getattr(model, name) is None}
    if missing and not add:
        raise ValueError(
            f"the model has no {' and no '.join(missing)} to fold a normalisation into: set shift_factor and "
            "scaling_factor in its config, or pass add_convs=True to add them, which changes its architecture"
        )
    like = model.encoder.conv_out.weight
    added = {}
    for name, size in missing.items():
        conv = nn.Conv2d(size, size, 1)
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(_bias(conv))
        added[name] = conv.to(like).train(model.training)
    return added


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # all of diffusers' convolutions have one
    return conv.bias


def _fold_output(conv: nn.Conv2d, shift: Tensor, scale: Tensor) -> _Changes:
    """Makes a convolution output z' instead of z; log-variances, if they follow, grow by 2 log scale."""
    weight, bias = (to_float64_on_cpu(parameter.detach()) for parameter in (conv.weight, _bias(conv)))
    rows = len(scale)
    new_weight = torch.cat([weight[:rows] * scale[:, None, None, None], weight[rows:]])
    log_variance = bias[rows:] + 2 * scale.log() if len(bias) > rows else bias[rows:]
    new_bias = torch.cat([(bias[:rows] - shift) * scale, log_variance])
    return [(conv.weight, new_weight), (_bias(conv), new_bias)]


def _fold_input(conv: nn.Conv2d, shift: Tensor, scale: Tensor) -> _Changes:
    """Makes a 1×1 convolution take z' instead of z = z' / scale + shift."""
    weight, bias = (to_float64_on_cpu(parameter.detach()) for parameter in (conv.weight, _bias(conv)))
    new_bias = bias + weight[:, :, 0, 0] @ shift
    return [(conv.weight, weight / scale[:, None, None]), (_bias(conv), new_bias)]


def _check_overflow(changes: _Changes) -> None:
    for parameter, value in changes:
        largest = value.abs().max().item()
        if not largest <= torch.finfo(parameter.dtype).max:
            raise ValueError(
                f"folded weights reach {largest:.3g}, which {parameter.dtype} does not hold: "
                "fold in float32, or by a scale nearer to 1"
            )
