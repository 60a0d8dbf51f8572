"""The class that a config names, and what the config means as arguments of ours."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from latentae.models.checkpoints.folders import stock_meaning
from latentae.models.kl import KLVAE
from latentae.models.tiny import TinyAutoencoder
from latentae.models.vq import VQGAN, VQVAE

Autoencoder = KLVAE | VQVAE | TinyAutoencoder
Model = TypeVar("Model", KLVAE, VQVAE, VQGAN, TinyAutoencoder)

# A plain VQModel does not say how it was trained; the two classes differ in name only.
CLASSES: dict[str, type[Autoencoder]] = {
    "KLVAE": KLVAE,
    "AutoencoderKL": KLVAE,
    "VQVAE": VQVAE,
    "VQGAN": VQGAN,
    "VQModel": VQGAN,
    "AutoencoderTiny": TinyAutoencoder,
    "TinyAutoencoder": TinyAutoencoder,
}


def meaning_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config leaves out, by the defaults of the class it names, which may be a stock class.

    Args:
        config: with a ``_class_name`` of ``CLASSES``.
    """
    name = config["_class_name"]
    stock = CLASSES[name]._stock_class
    return stock_meaning(config, stock) if stock is not None and name == stock.__name__ else {}


def constructor_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our class for a model with this config, which has a ``_class_name`` of ``CLASSES``."""
    taken = inspect.signature(CLASSES[config["_class_name"]].__init__).parameters
    own = {name: value for name, value in config.items() if name in taken}
    return {**own, **meaning_of(config)}
