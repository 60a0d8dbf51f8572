"""Rescales weights so that a model's activations fit float16; the model stays the same function.

Float16 holds numbers up to 65504. The residual stream of some autoencoders grows beyond that, as in SDXL's
decoder, and float16 then gives NaN: black images. In diffusers' ``Encoder`` and ``Decoder`` every branch
starts with a group normalisation, which undoes a factor of its input. Therefore the layers that write into
the stream can be multiplied by a factor s, as can the layers between other activations:

- activations that are added or lie between the same layers share their factors: the stream from one
  resampling or shortcut to the next, the output of each ``conv1``, the values of an attention, and what lies
  between two convolutions around the latents;
- a normalisation divides its channels into groups and undoes a factor of each. So each of these groups of
  channels has a factor of its own, and channels whose activations are small keep theirs at 1;
- a layer that reads channel i with factor a and writes channel o with factor b gets weight[o, i] · b / a and
  bias[o] · b.

Factors are powers of two, so that no weight is rounded. Normalisations add their eps to a variance that is s²
times as large: GN(s x, eps) = GN(x, eps / s²). That is the one change of the function, and it is small where
a factor is needed, since there the activations are large. ``make_half_safe`` measures it.

Three things have no factor: outputs of normalisations, since the activation after them is not linear; the
logits of an attention, which torch computes in float32; and the images and latents themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, SpatialNorm
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from latentae.models.plain import check_weights
from latentae.models.precision import CHUNK, Precision, Reference, convert, decoder_input, encode

LARGEST = 65504.0
"""The largest number of float16."""
_WORST_WEIGHTS = 0.01  # relative error of a layer's weights in float16; rounding alone gives about 2e-4
_WORST_CHANGE = 0.02  # of images in [-1, 1], in float32; of images beyond them, relative to the largest value


# --- results


@dataclass(frozen=True)
class LayerRange:
    """The largest magnitude of a layer's output.

    Attributes:
        name: of the module.
        before, after: the largest magnitude.
        factor: of the output, a power of two; the smallest of its channels.
    """

    name: str
    before: float
    after: float
    factor: float


@dataclass(frozen=True)
class HalfSafeReport:
    """The findings and changes of ``make_half_safe``.

    Attributes:
        layers: the range of every layer, normalisation and block, in the order of the model's parts.
        margin: how many times the largest rescaled activation is below 65504, or more.
        float32_before, float16_before: errors of the model before against itself in float64.
        float32_after, float16_after: errors of the rescaled model against the same, also if there is an
            obstacle.
        weight_error: largest relative error of a rescaled layer's weights in float16.
        obstacle: why float16 cannot hold the model, as a sentence; then the model was left as it is. None:
            it runs in float16.
    """

    layers: tuple[LayerRange, ...]
    margin: float
    float32_before: Precision
    float16_before: Precision
    float32_after: Precision
    float16_after: Precision
    weight_error: float
    obstacle: str | None

    @property
    def changed(self) -> bool:
        """Whether weights were changed."""
        return self.obstacle is None and any(layer.factor != 1 for layer in self.layers)

    def __str__(self) -> str:
        """Says in one or two sentences what was found and done."""
        largest = max(self.layers, key=lambda layer: layer.before)
        found = f"the largest activation is {largest.before:.3g} ({largest.name})"
        if self.obstacle is not None:
            return f"{found}; {self.obstacle}, so the weights were left as they are"
        if not self.changed:
            return (
                f"{found}, {LARGEST / largest.before:.3g} times below float16's limit: nothing had to change"
            )
        count = sum(layer.factor != 1 for layer in self.layers)
        now = max(layer.after for layer in self.layers)
        smallest = min(layer.factor for layer in self.layers)
        return (
            f"{found}; the outputs of {count} of {len(self.layers)} layers were rescaled, by "
            f"1/{1 / smallest:g} at most, and the largest is now {now:.3g}, {LARGEST / now:.2g} times below "
            f"float16's limit. In float16, {self.float16_after} "
            f"(before: {self.float16_before}); in float32, images by {self.float32_after.images:.1e} "
            f"(before: {self.float32_before.images:.1e})"
        )


# --- the tool


@torch.no_grad()
def make_half_safe(model: Any, images: Tensor, margin: float = 8.0) -> HalfSafeReport:
    """Rescales a model's weights in place by powers of two, so that its activations fit float16.

    Activations are measured in float32: the encoder's on the images, their mirror images, black and white,
    and the decoder's on the latents of all these. Then the largest factors are chosen that keep them
    ``margin`` times below 65504; channels that fit already keep the factor 1. Images that were not measured,
    and latents that a denoiser makes, have the margin.

    The result is tried on a copy. If float16 loses the small weights, or the eps of normalisations changes
    the images by more than 1 % of their range, the margin is halved up to three times, but not below 2; the
    report has the one that was used. If that does not help, or float16 still gives values that are not
    finite, the model is left as it is. Where float16 holds the model, and its config has ``force_upcast``,
    that becomes False.

    The names and shapes of the weights, the config's scale and a VQ model's codes do not change, so that
    every export format holds the result. If you can choose, rescale in float32 and cast afterwards.

    Args:
        model: a KLVAE, Flux2VAE, VQVAE or VQGAN on diffusers' ``Encoder`` and ``Decoder``, in any dtype.
        images: [B, C, H, W] in [−1, 1], floating point, typical of what the model will see; some 8 are
            enough. Float16 and float64 are tried on all of them, which takes a while on a CPU.
        margin: 1 or more.

    Raises:
        ValueError: a model without group normalisations; adapters, fused projections or quantised weights;
            images that the model cannot encode; a margin below 1; activations that are not finite in float32.
            Then nothing is changed.
    """
    if not 1 <= margin < LARGEST:
        raise ValueError(f"margin is {margin}, but must be 1 or more, and below {LARGEST:g}")
    plan = _Plan.of(model)
    _check_images(model, images)
    images = images.detach().to(model.device, torch.float32)
    reference = Reference.of(model, images)

    before = _measure(model, plan, images, reference)
    if not all(bool(largest.isfinite().all()) for largest in before.ranges.values()):
        raise ValueError("activations are not finite in float32: the model's weights are damaged")

    # Choose factors and try them on a copy; with a smaller margin where that can help.
    margins = [margin, *(margin / 2**halvings for halvings in (1, 2, 3) if margin / 2**halvings >= 2)]
    for margin in margins:
        plan.choose_factors(before.ranges, LARGEST / margin)
        after, weight_error, obstacle = before, 0.0, None
        if plan.changes:
            twin = convert(model, torch.float32)
            weight_error, obstacle = _rescale(twin, plan)
            after = _measure(twin, plan, images, reference)
            obstacle = obstacle or _find_change(after.float32, reference)
        if obstacle is None:
            break
    obstacle = obstacle or _find_overflow(after.ranges, after.float16)

    if obstacle is None:
        _rescale(model, plan)
        if model.config.get("force_upcast"):
            model.change_config(force_upcast=False)
    layers = (
        LayerRange(
            name=name,
            before=before.ranges[name].max().item(),
            after=after.ranges[name].max().item(),
            factor=activations.factors.min().item(),
        )
        for name, activations in plan.observed.items()
    )
    return HalfSafeReport(
        layers=tuple(layers),
        margin=margin,
        float32_before=before.float32,
        float16_before=before.float16,
        float32_after=after.float32,
        float16_after=after.float16,
        weight_error=weight_error,
        obstacle=obstacle,
    )


@dataclass(frozen=True)
class _Measured:
    """A model's largest activations, as ``_measure_ranges`` returns them, and its errors."""

    ranges: dict[str, Tensor]
    float32: Precision
    float16: Precision


def _measure(model: Any, plan: _Plan, images: Tensor, reference: Reference) -> _Measured:
    return _Measured(
        ranges=_measure_ranges(convert(model, torch.float32), plan, images),
        float32=reference.compare(model, torch.float32),
        float16=reference.compare(model, torch.float16),
    )


def _find_change(float32: Precision, reference: Reference) -> str | None:
    """Returns what is wrong with the rescaled model in float32; None if nothing is."""
    largest = max(part.abs().max().item() for part in reference.pixels)
    if float32.images <= _WORST_CHANGE * max(1.0, largest):
        return None
    return (
        f"in float32 images would change by {float32.images:.1e}: somewhere in the stream the activations "
        "are so small that the eps of a normalisation counts"
    )


def _find_overflow(ranges: dict[str, Tensor], float16: Precision) -> str | None:
    """Returns what is wrong with the rescaled model in float16; None if nothing is."""
    if not float16.not_finite:
        return None
    name = max(ranges, key=lambda name: ranges[name].max().item())
    return (
        f"float16 still gives values that are not finite: {name} reaches {ranges[name].max():.3g}, and no "
        "factor of weights can lower it"
    )


def _check_images(model: Any, images: Tensor) -> None:
    """Raises ValueError for images that the model cannot encode, or if there are none."""
    if isinstance(images, Tensor) and images.is_floating_point():
        images = images.to(model.device, model.dtype)
    model._check_images(images)
    if len(images) == 0:
        raise ValueError("images has no image to measure activations on")


# --- which layers share a factor


class _Activations:
    """Activations that share their factors.

    Attributes:
        factors: [parts] float64, one for each group of channels.
    """

    def __init__(self, parts: int = 1) -> None:
        self.factors = torch.ones(parts, dtype=torch.float64)

    def by_channel(self, channels: int) -> Tensor:
        """Returns the factor of each of so many channels."""
        return self.factors.repeat_interleave(channels // len(self.factors))


_FIXED = _Activations()
"""Activations whose factor stays 1: images, latents, outputs of normalisations."""


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer, and what it reads and writes."""

    name: str
    source: _Activations
    target: _Activations


@dataclass
class _Plan:
    """The layers of a model and the groups of its activations.

    Attributes:
        names: of modules, by their id.
        layers: all convolutions and linear layers.
        observed: modules whose output is measured, with what that is.
        pairs: queries and keys, whose factors are each other's inverse.
        parts: groups of channels in the normalisations of the encoder or decoder that is followed.
    """

    names: dict[int, str]
    layers: list[_Layer] = field(default_factory=list)
    observed: dict[str, _Activations] = field(default_factory=dict)
    pairs: list[tuple[_Activations, _Activations]] = field(default_factory=list)
    parts: int = 1

    @classmethod
    def of(cls, model: Any) -> _Plan:
        """Follows the data through a model.

        Raises:
            ValueError: a model of other parts than diffusers' ``Encoder`` and ``Decoder``.
        """
        for part, kind in ((model.encoder, Encoder), (model.decoder, Decoder)):
            if not isinstance(part, kind):
                raise ValueError(
                    f"a {type(model).__name__} with {type(part).__name__} cannot be made safe for float16: "
                    f"that needs diffusers' {kind.__name__}, whose group normalisations undo factors of "
                    "activations"
                )
        check_weights(model)
        plan = cls({id(module): name for name, module in model.named_modules()})
        # Encoder: images, stream, moments, latents.
        plan.parts = _groups_of_channels(model.encoder)
        stream = plan._layer(model.encoder.conv_in, _FIXED, plan._normalised())
        for block in (*model.encoder.down_blocks, model.encoder.mid_block):
            stream = plan._block(block, stream)
        plan._fixed(model.encoder.conv_norm_out)
        moments = _FIXED if model.quant_conv is None else _Activations()
        plan._layer(model.encoder.conv_out, _FIXED, moments)
        if model.quant_conv is not None:
            plan._layer(model.quant_conv, moments, _FIXED)
        # Decoder: latents, stream, images.
        plan.parts = _groups_of_channels(model.decoder)
        latents = _FIXED
        if model.post_quant_conv is not None:
            latents = plan._layer(model.post_quant_conv, _FIXED, _Activations())
        stream = plan._layer(model.decoder.conv_in, latents, plan._normalised())
        for block in (model.decoder.mid_block, *model.decoder.up_blocks):
            stream = plan._block(block, stream)
        plan._fixed(model.decoder.conv_norm_out)
        plan._layer(model.decoder.conv_out, _FIXED, _FIXED)
        return plan

    def _normalised(self) -> _Activations:
        """Returns new activations that only normalisations and linear layers read."""
        return _Activations(self.parts)

    def _block(self, block: Any, stream: _Activations) -> _Activations:
        """Adds a block of the encoder or decoder; returns its output."""
        attentions = getattr(block, "attentions", None) or ()
        for resnet, attention in zip_longest(block.resnets, attentions):
            stream = self._resnet(resnet, stream)
            if attention is not None:
                self._attention(attention, stream)
        samplers = getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ()
        for sampler in samplers:
            stream = self._layer(sampler.conv, stream, self._normalised())
        return stream

    def _resnet(self, resnet: Any, stream: _Activations) -> _Activations:
        self._fixed(resnet.norm1)
        self._layer(resnet.conv1, _FIXED, self._normalised())
        self._fixed(resnet.norm2)
        if resnet.conv_shortcut is not None:
            stream = self._layer(resnet.conv_shortcut, stream, self._normalised())
        self._layer(resnet.conv2, _FIXED, stream)
        self.observed[self.names[id(resnet)]] = stream  # the sum of both
        return stream

    def _attention(self, attention: Attention, stream: _Activations) -> None:
        name = self.names[id(attention)]
        norm = attention.group_norm if attention.spatial_norm is None else attention.spatial_norm
        if norm is None or attention.fused_projections or attention.norm_q is not None:
            raise ValueError(
                f"{name} is not an autoencoder's attention, a normalisation and three projections: "
                "unfuse_qkv_projections() splits projections that were fused"
            )
        self._fixed(norm)
        query, key, value = _Activations(), _Activations(), _Activations()
        self._layer(attention.to_q, _FIXED, query)
        self._layer(attention.to_k, _FIXED, key)
        self._layer(attention.to_v, _FIXED, value)
        self._layer(attention.to_out[0], value, stream)
        self.observed[name] = stream
        self.pairs.append((query, key))

    def _layer(self, module: nn.Module, source: _Activations, target: _Activations) -> _Activations:
        name = self.names[id(module)]
        if not isinstance(module, nn.Conv2d | nn.Linear) or type(module.weight) is not nn.Parameter:
            raise ValueError(
                f"{name} is not a plain layer, so that its weights cannot be rescaled: merge adapters and "
                "use weights that are not quantised"
            )
        self.layers.append(_Layer(name, source, target))
        self.observed[name] = target
        return target

    def _fixed(self, norm: nn.Module) -> None:
        """Adds a normalisation: the activation after it is not linear, so that its factor is fixed."""
        if not isinstance(norm, nn.GroupNorm | SpatialNorm):
            raise ValueError(
                f"{self.names[id(norm)]} is a {type(norm).__name__}, but must be a group normalisation, "
                "which undoes factors of activations"
            )
        self.observed[self.names[id(norm)]] = _FIXED

    @property
    def changes(self) -> bool:
        """Whether any factor is not 1."""
        return any(bool((activations.factors != 1).any()) for activations in self.observed.values())

    def choose_factors(self, ranges: dict[str, Tensor], limit: float) -> None:
        """Chooses the largest powers of two, at most 1, that keep activations below a limit."""
        peaks: dict[_Activations, Tensor] = {}
        for name, activations in self.observed.items():
            peaks[activations] = ranges[name].maximum(peaks.get(activations, ranges[name]))
        for activations, peak in peaks.items():
            if activations is not _FIXED:
                exponents = (peak.clamp(min=1e-30) / limit).log2().ceil().clamp(min=0)
                activations.factors = torch.exp2(-exponents)
        # An attention's logits are products of queries and keys: what one loses, the other gains.
        for query, key in self.pairs:
            if bool((query.factors != 1).any() or (key.factors != 1).any()):
                ratio = peaks[key].clamp(min=1e-30) / peaks[query].clamp(min=1e-30)
                query.factors = torch.exp2((0.5 * ratio.log2()).round())
                key.factors = 1 / query.factors


def _groups_of_channels(part: nn.Module) -> int:
    """Returns the number of groups that every normalisation of a part keeps apart."""
    return math.gcd(*(norm.num_groups for norm in part.modules() if isinstance(norm, nn.GroupNorm)))


def _measure_ranges(model: Any, plan: _Plan, images: Tensor) -> dict[str, Tensor]:
    """Returns the largest magnitudes of the observed modules' outputs, by name.

    Args:
        model: in float32, in eval mode.
        images: [B, C, H, W]; their mirror images, black and white are measured too.

    Returns:
        [parts] float64 on the CPU, one for each group of channels; NaN or inf if values are not finite.
    """
    ranges = {name: torch.zeros_like(activations.factors) for name, activations in plan.observed.items()}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            channels = output.movedim(1 if output.ndim == 4 else -1, 0)  # of linear layers: [B, N, C]
            largest = channels.reshape(len(ranges[name]), -1).abs().amax(dim=1)
            ranges[name] = ranges[name].maximum(largest.cpu().double())

        return record

    handles = [model.get_submodule(name).register_forward_hook(recorder(name)) for name in ranges]
    flat = torch.ones_like(images[:1])
    try:
        for part in torch.cat([images, images.flip(-1), flat, -flat]).split(CHUNK):
            model._decode_whole(decoder_input(model, encode(model, part)))
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _rescale(model: Any, plan: _Plan) -> tuple[float, str | None]:
    """Multiplies the weights by the plan's factors, in place.

    Returns:
        the largest relative error of a changed layer's weights in float16, and what is wrong with float16's
        weights, None if nothing is.
    """
    largest_error, objection = 0.0, None
    for layer in plan.layers:
        module = model.get_submodule(layer.name)
        weight = module.weight
        written = layer.target.by_channel(weight.shape[0]).to(weight.device, torch.float32)
        read = layer.source.by_channel(weight.shape[1]).to(weight.device, torch.float32)
        factors = written[:, None] / read
        if module.bias is not None:
            module.bias.mul_(written)
        if bool((factors == 1).all()):
            continue
        exact = weight.float() * factors.reshape(*factors.shape, *[1] * (weight.ndim - 2))
        weight.copy_(exact)
        size = exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
        error = ((exact.half().float() - exact).norm() / size).item()
        largest_error = max(largest_error, error)
        if not error <= _WORST_WEIGHTS:  # inf where a weight overflows
            objection = (
                f"the weights of {layer.name} would not fit float16, since they need factors of "
                f"{factors.min():g} to {factors.max():g}"
            )
    return largest_error, objection
