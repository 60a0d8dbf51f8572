"""Refuses updates from losses or gradients that are not finite, counts them, and finds their causes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae import distributed
from latentae.data.names import printable_name

Gather = Callable[[list[Any]], list[Any]]
"""Joins the lists of all ranks into one, the same on each."""

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class SkippedStep:
    """An update that was not made.

    Attributes:
        step: its number, counted from 1.
        causes: the losses and gradient norms that were not finite.
        names: the images of the batch, or only those of the ranks whose own losses were at fault.
    """

    step: int
    causes: list[str]
    names: list[str]

    def __str__(self) -> str:
        shown = ", ".join(map(printable_name, self.names[:_NAMES_SHOWN]))
        if len(self.names) > _NAMES_SHOWN:
            shown += f" and {len(self.names) - _NAMES_SHOWN} more"
        return f"step {self.step} skipped: {', '.join(self.causes)} not finite; its images: {shown}"


@dataclass
class _Attempt:
    """One optimizer step since the last report; tensors stay on the device until then."""

    step: int
    labels: list[str]
    names: list[str]
    # How many ranks found each label not finite, whether the scaler overflowed, whether an own loss did.
    flags: Tensor


class Guard:
    """Decides about every update on the device, with the same result on all ranks.

    Every rank calls ``watch`` for each micro-batch, ``accept`` before the update, and ``report`` at log
    lines. Only ``report`` waits for the device.

    Args:
        gather: joins the ranks' lists.
        gradient_losses: names of losses made of gradients under the loss scale. Like gradient norms they
            overflow if the scale is too large.

    Attributes:
        skipped: updates not made so far, in the whole run.
        consecutive: how many of the latest updates in a row were not made.
        longest: the most updates in a row that were not made, among those of the last report. A row that
            began before is counted from its start. 0 if all of them were made.
    """

    def __init__(self, gather: Gather, gradient_losses: Collection[str] = ()) -> None:
        self.gather = gather
        self.gradient_losses = gradient_losses
        self.skipped = 0
        self.consecutive = 0
        self.longest = 0
        self._losses: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._attempts: list[_Attempt] = []

    @torch.no_grad()
    def watch(self, losses: dict[str, Tensor], names: Sequence[str]) -> None:
        """Adds the losses of a micro-batch, scalars by name, and the names of this rank's images in it."""
        for name, loss in losses.items():
            infinite = ~torch.isfinite(loss)
            self._losses[name] = infinite | self._losses[name] if name in self._losses else infinite
        self._names += names

    @torch.no_grad()
    def accept(self, step: int, norms: dict[str, Tensor], loss_scale: Tensor | None = None) -> Tensor:
        """Returns whether update ``step`` (counted from 1) is made: a boolean scalar, the same on every rank.

        Args:
            norms: gradient norms by name, unscaled, from gradients averaged over ranks.
            loss_scale: the gradient scaler's, if there is one. If gradients, or losses made of gradients,
                overflow under a scale above 1 and all other losses are finite, the scaler will lower its
                scale. Such an update is not made either, but does not count as a fault.
        """
        infinite = [*self._losses.values(), *(~torch.isfinite(norm) for norm in norms.values())]
        own = torch.stack(infinite).float()
        total = distributed.all_reduce_sum(own)
        # A value that is not finite on all ranks came from one of them by a sum, as the adaptive weight does.
        elsewhere_fine = total < distributed.world_size()
        here = (own * elsewhere_fine)[: len(self._losses)].sum()
        overflow = torch.zeros_like(here)
        if loss_scale is not None:
            counts = zip(self._losses, total, strict=False)  # those of the losses come first
            plain = [count for name, count in counts if name not in self.gradient_losses]
            overflow = (sum(plain, torch.zeros_like(here)) == 0).float() * (loss_scale > 1)
        flags = torch.cat([total, torch.stack([overflow, here])])
        self._attempts.append(_Attempt(step, [*self._losses, *norms], self._names, flags))
        self._losses, self._names = {}, []
        return total.sum() == 0

    def report(self) -> list[SkippedStep]:
        """Returns the updates not made since the last call. Every rank calls it."""
        attempts, self._attempts = self._attempts, []
        self.longest = 0
        skipped = []
        for attempt, ranks, overflow, here in _read(attempts):
            if not any(ranks):
                self.consecutive = 0
            elif not overflow:
                self.consecutive += 1
                self.longest = max(self.longest, self.consecutive)
                causes = [label for label, count in zip(attempt.labels, ranks, strict=True) if count]
                skipped.append(SkippedStep(attempt.step, causes, self._images(attempt.names, here > 0)))
        self.skipped += len(skipped)
        return skipped

    def _images(self, names: list[str], here: bool) -> list[str]:
        """Returns the images of the ranks whose own losses were at fault; of all if only gradients were."""
        by_rank: list[tuple[bool, list[str]]] = self.gather([(here, names)])
        guilty = [name for fault, theirs in by_rank if fault for name in theirs]
        return guilty or [name for _, theirs in by_rank for name in theirs]

    def state_dict(self) -> dict[str, int]:
        """Returns the counts for a resumed run, including the updates since the last ``report``."""
        skipped, consecutive = self.skipped, self.consecutive
        for _, ranks, overflow, _ in _read(self._attempts):
            if not any(ranks):
                consecutive = 0
            elif not overflow:
                skipped, consecutive = skipped + 1, consecutive + 1
        return {"skipped": skipped, "consecutive": consecutive}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Loads a state that ``state_dict`` returned."""
        self.skipped, self.consecutive = state["skipped"], state["consecutive"]


def _read(attempts: Sequence[_Attempt]) -> Iterator[tuple[_Attempt, list[float], float, float]]:
    """Yields each attempt with its flags: by label, if the scaler overflowed, if an own loss did."""
    if not attempts:
        return
    flags = iter(torch.cat([attempt.flags for attempt in attempts]).tolist())
    for attempt in attempts:
        yield attempt, [next(flags) for _ in attempt.labels], next(flags), next(flags)


_LARGEST_SHOWN = 3

RETRY = (
    "Try a lower optimizer.learning_rate, max_grad_norm=1.0 or mixed_precision=no from a checkpoint of it, "
    "with resume=PATH and another output_dir"
)
"""The advice for a run that diverged."""


@dataclass(frozen=True)
class Diagnosis:
    """The place in a network where numbers stop being finite, found by a forward pass.

    Attributes:
        weights: names of the parameters and buffers that hold a value that is not finite.
        layer: the first module without children whose output was not finite, or None.
        largest: (name, largest absolute output) of the modules with the largest outputs before it.
    """

    weights: list[str]
    layer: str | None
    largest: list[tuple[str, float]]

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {value:.3g}" for name, value in self.largest)
        lines = [
            f"weights: {'not finite are ' + ', '.join(self.weights[:5]) if self.weights else 'all finite'}",
            f"activations: {f'not finite from {self.layer} on' if self.layer else 'all finite'}; "
            f"the largest before that: {largest or 'none'}",
        ]
        return "\n".join(lines)


@torch.no_grad()
def diagnose(network: nn.Module, *arguments: Tensor) -> Diagnosis:
    """Runs a network once, in its present mode, and looks at the outputs of modules without children."""
    weights = [name for name, value in network.state_dict().items() if not _finite(value)]
    outputs: list[tuple[str, bool, float]] = []
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.extend(
                (name, _finite(output), output.abs().max().item())
                for output in [output]
                if isinstance(output, Tensor) and output.numel()
            )
        )
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        network(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    first = next((i for i, (_, finite, _) in enumerate(outputs) if not finite), len(outputs))
    layer = outputs[first][0] if first < len(outputs) else None
    before = sorted(((name, value) for name, _, value in outputs[:first]), key=lambda pair: -pair[1])
    return Diagnosis(weights, layer, before[:_LARGEST_SHOWN])


def explain(skipped: Sequence[SkippedStep], diagnoses: Sequence[str], scaler: Any) -> str:
    """Returns why updates were not made: the losses, the layer, the loss scale.

    Args:
        skipped: the updates.
        diagnoses: each rank's. That of a rank whose own batch did no harm shows nothing.
        scaler: the gradient scaler of float16 training, or None.
    """
    causes = sorted({cause for step in skipped for cause in step.causes})
    telling = next((text for text in diagnoses if "not finite" in text), diagnoses[0])
    scale = "none" if scaler is None else scaler.get_scale()
    return f"not finite: {', '.join(causes)}\n{telling}\nloss scale: {scale}"


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
