"""The optimizers of ``optimizer.type``, each over the weights of a network that learn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's: five rounds take [0.01, 1] to about [0.7, 1.2]
_ROUNDS = 5
_LEAST_NORM = 1e-7  # as in torch: below it updates shrink, so weights rest once their gradients have ended
_MOST_STACKED = 2**23  # numbers in matrices that are made orthogonal at once, with five times their memory


def adamw(network: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    """Returns AdamW (arXiv 1711.05101).

    It uses torch's fused kernel where there is one, which is faster and can skip a step on the device
    (``found_inf``).

    Args:
        settings: ``lr``, ``betas``, ``weight_decay`` and ``eps``.
    """
    weights = _learned(network)
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    return torch.optim.AdamW(weights, fused=fused, **settings)


def adamw8bit(network: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    """Returns bitsandbytes' AdamW: 8-bit averages for tensors of 4096 numbers or more (arXiv 2110.02861).

    Args:
        settings: as of ``adamw``.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        library = import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        raise ValueError(
            "optimizer.type is adamw8bit, which needs a package that is not installed: "
            "pip install bitsandbytes, or use adamw"
        ) from error
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(_learned(network), **settings)
    return optimizer


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalised update for matrices, AdamW for all other weights.

    Matrices are the weights of linear layers and convolutions, these with all dimensions but the first taken
    together. The singular values of their updates are all near 1, so directions with small gradients, such as
    colours, are learned as fast as those with large ones. Norms, biases, codebooks and single numbers have no
    such directions.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", with the update's
    size of arXiv 2502.16982. Unlike there, the first and last layers count as matrices. torch.optim.Muon
    takes matrices only, and one after another.

    Args:
        network: whose weights learn.
        lr: learning rate of both kinds.
        momentum: decay of the gradient's average, for matrices.
        update_rms: root mean square of a matrix's update if its singular values are 1, as a share of ``lr``.
        betas, eps: of AdamW.
        weight_decay: of both kinds.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        momentum: float,
        update_rms: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
    ) -> None:
        matrices = {
            id(weight)
            for layer in network.modules()
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            for weight in layer.parameters()  # those of a parametrized layer are a level below
            if weight.ndim >= 2
        }
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for weight in _learned(network):
            groups[id(weight) in matrices].append(weight)
        settings = {
            "lr": lr,
            "momentum": momentum,
            "update_rms": update_rms,
            "betas": betas,
            "weight_decay": weight_decay,
            "eps": eps,
            "orthogonal": False,
        }
        super().__init__(
            [{"params": weights, "orthogonal": kind} for kind, weights in groups.items() if weights], settings
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not group["orthogonal"]:
                self._step_adamw(weights, group)
                continue
            by_shape: defaultdict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for weight in weights:
                by_shape[weight.shape, weight.device].append(weight)
            for alike in by_shape.values():
                count = max(1, _MOST_STACKED // alike[0].numel())
                for start in range(0, len(alike), count):
                    self._step_matrices(alike[start : start + count], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads averages and counts. A count stays on the CPU, where a step reads it without waiting."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "step" in state:
                state["step"] = state["step"].cpu()

    def _step_matrices(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Changes weights of one shape."""
        averages: list[Tensor] = []
        gradients = _gradients(weights)
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["average"] = torch.zeros_like(weight)
            averages.append(state["average"])
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov's momentum
        updates = orthogonalise(torch.stack([update.flatten(1) for update in ahead]))
        rows, columns = updates.shape[1:]
        rate = group["lr"] * group["update_rms"] * math.sqrt(max(rows, columns))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.view(-1, *weights[0].shape)), alpha=-rate)

    def _step_adamw(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        names = ("average", "average_square", "step")
        for weight in weights:
            state = self.state[weight]
            if not state:
                state |= {name: torch.zeros_like(weight) for name in names[:2]}
                state["step"] = torch.zeros((), dtype=torch.float32)
        averages, squares, steps = ([self.state[weight][name] for weight in weights] for name in names)
        adamw_step(
            weights,
            _gradients(weights),
            averages,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrices: Tensor) -> Tensor:
    """Returns matrices [N, rows, columns] with the same singular vectors and singular values of about 1.

    The Newton-Schulz rounds of Muon, X ← a X + b (XXᵀ) X + c (XXᵀ)² X, are carried out on the smaller of XXᵀ
    and XᵀX: they multiply X from one side by polynomials of it, and these commute. That takes a third of the
    products for a 3×3 convolution.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / matrices.flatten(1).norm(dim=1).clamp(min=_LEAST_NORM)[:, None, None]
    gram = wide @ wide.mT
    product = factor = _newton_schulz_factor(gram)
    for _ in range(_ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _newton_schulz_factor(gram)
        product = factor @ product
    result = product @ wide
    return result if wide.shape == matrices.shape else result.mT


def _newton_schulz_factor(gram: Tensor) -> Tensor:
    """Returns a I + b G + c G² of matrices [N, rows, rows]."""
    first, second, third = _NEWTON_SCHULZ
    factor = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
    factor.diagonal(dim1=1, dim2=2).add_(first)
    return factor


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _learned(network: nn.Module) -> list[Tensor]:
    return [weight for weight in network.parameters() if weight.requires_grad]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "muon": Muon,
}
"""Type -> function of a network and settings."""


@contextmanager
def keep_settings(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Keeps the settings of optimizers that are loaded in its body: only averages and counts are taken over.

    A state dict also holds the settings of the run that saved it (betas, epsilon, weight decay, a group's
    share of the learning rate, the kernel). The config decides about these.
    """
    settings = [
        [{name: value for name, value in group.items() if name != "params"} for group in one.param_groups]
        for one in optimizers
    ]
    yield
    for optimizer, groups in zip(optimizers, settings, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
        # Load once more under these settings: they decide on which device the fused kernel finds its counts.
        optimizer.load_state_dict(optimizer.state_dict())
