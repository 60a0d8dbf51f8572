"""Pretrained vision transformers, from the hub or a folder, by way of transformers."""

from __future__ import annotations

from typing import Any

from latentae.weights import WeightsNotFoundError


def load_vision_transformer(place: str) -> Any:
    """The transformers model at a hub id or in a folder, float32, on the CPU.

    Raises:
        WeightsNotFoundError: there is none, it cannot be downloaded, or transformers is not installed.
    """
    try:
        from transformers import AutoModel  # imports for seconds, and few runs need it
    except ModuleNotFoundError as error:
        raise WeightsNotFoundError(
            f"{place} is opened by transformers, which is not installed: pip install 'latentae[dinov2]', or "
            "use the network vgg16"
        ) from error
    try:
        return AutoModel.from_pretrained(place, dtype="float32")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsNotFoundError(
            f"the feature network {place} cannot be had ({reason}): give the folder of a transformers model, "
            "the hub id of one while online, or vgg16, which the perceptual loss has at hand"
        ) from error
