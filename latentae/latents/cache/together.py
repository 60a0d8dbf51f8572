"""What one rank does and all must know the end of, so that none waits for another that has failed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from latentae import distributed


def fails_anywhere(failed: bool) -> bool:
    """Whether any rank has failed; every rank calls it."""
    return bool(distributed.all_reduce_sum(torch.tensor(int(failed))).item())


def on_main(action: Callable[[], None], what: str) -> None:
    """Rank 0 does something, and the others wait until it is done; every rank calls it.

    Raises:
        ValueError or OSError: what ``action`` raises on rank 0; elsewhere a ValueError that names ``what``.
    """
    failure: ValueError | OSError | None = None
    if distributed.is_main():
        try:
            action()
        except (ValueError, OSError) as error:
            failure = error
    if fails_anywhere(failure is not None):
        raise failure or ValueError(f"the first process could not {what}")
