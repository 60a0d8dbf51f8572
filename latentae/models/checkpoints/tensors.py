"""Tensors that cannot be a model's weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor


def adapter_remedy(names: Collection[str]) -> str:
    """What to do about tensors of these names that hold adapters beside the weights; empty where none do."""
    if not any(".base_layer." in name for name in names):
        return ""
    return (
        ": adapters (LoRA or the like) were saved beside the weights. Merge them before saving, with "
        "export_autoencoder or to_diffusers"
    )


def check_floating(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks that what becomes floating-point weights is stored as floating-point numbers.

    Integers are a quantized model's: without its scales, they are other numbers than the weights.

    Args:
        state: the stored tensors.
        own: the model's, under the same names.

    Raises:
        ValueError: some are not; the message names one and its type.
    """
    wrong = [
        name
        for name, tensor in state.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if wrong:
        kind = str(state[wrong[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{len(wrong)} of {len(state)} tensors hold {kind} where weights are floating-point numbers, "
            f"such as {wrong[0]}: the file is of a quantized model, or damaged. Save the weights as float32, "
            "float16 or bfloat16"
        )
