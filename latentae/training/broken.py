"""Images that could not be read: counted, named, and too many when they are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_NAMES_SHOWN = 5


class TooManyBrokenImagesError(ValueError):
    """More images cannot be read than ``data.max_broken`` allows."""


class BrokenImages:
    """The distinct broken images met so far.

    Args:
        limit: how many are put up with.
        gather: joins the lists of all ranks into one, the same on each.
    """

    def __init__(self, limit: int, gather: Callable[[list[str]], list[str]]) -> None:
        self.limit = limit
        self.gather = gather
        self.known: set[str] = set()
        self.fresh: set[str] = set()

    def add(self, descriptions: Iterable[str]) -> None:
        """Notes descriptions (name and reason) of broken images; empty ones are none."""
        self.fresh.update(text for text in descriptions if text and text not in self.known)

    def report(self) -> str | None:
        """A sentence on what was added since the last call, or None; every rank must call it.

        Raises:
            TooManyBrokenImagesError: all in all there are more than the limit.
        """
        fresh = sorted(set(self.gather(sorted(self.fresh))) - self.known)
        self.known.update(fresh)
        self.fresh.clear()
        if not fresh:
            return None
        shown = "".join(f"\n  {text}" for text in fresh[:_NAMES_SHOWN])
        if len(fresh) > _NAMES_SHOWN:
            shown += f"\n  and {len(fresh) - _NAMES_SHOWN} more"
        if len(self.known) > self.limit:
            raise TooManyBrokenImagesError(
                f"{len(self.known)} image{'s' * (len(self.known) > 1)} cannot be read, and "
                f"data.max_broken is {self.limit}:{shown}\n"
                "repair or remove them, or raise data.max_broken"
            )
        if len(fresh) == 1:
            return f"an image cannot be read and is skipped:{shown}"
        return f"{len(fresh)} images cannot be read and are skipped:{shown}"
