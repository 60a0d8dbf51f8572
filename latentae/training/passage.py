"""What goes through a module in a forward, without keeping it elsewhere."""

from __future__ import annotations

from torch import Tensor, nn

from latentae.models.lean.blocks import LeanLastConv


class Passage:
    """Context in which the first call of a module is remembered.

    Attributes:
        output: what it made of it, with its graph.
    """

    output: Tensor

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._seen = False
        self._given: Tensor

    @property
    def inputs(self) -> Tensor:
        """What the module was given, detached; of a lean one, what it made of that and convolved."""
        if isinstance(self.module, LeanLastConv):
            return self.module.convolved(self._given)
        return self._given

    def __enter__(self) -> Passage:
        self._seen = False
        self._hook = self.module.register_forward_hook(self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _remember(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._seen:
            self._given, self.output, self._seen = arguments[0].detach(), output, True
