"""Whether a cache's latents are those of a model."""

from __future__ import annotations

from pathlib import Path

from latentae.latents.cache.folder import CacheSettings
from latentae.latents.cache.identity import model_hash, normalisation_of
from latentae.models import LatentAutoencoder, load_autoencoder


def check_model(settings: CacheSettings, model: str | Path | LatentAutoencoder, folder: Path) -> None:
    """Raises ValueError unless the latents in ``folder``, made with ``settings``, are this model's.

    A model whose decoder alone has changed is the same one here.
    """
    opened = load_autoencoder(model) if isinstance(model, str | Path) else model
    if not isinstance(opened, LatentAutoencoder):
        raise ValueError(f"model is a {type(opened).__name__}: give a path, or what load_autoencoder returns")
    found, wanted = model_hash(opened, codes=settings.options["codes"]), settings.model["hash"]
    if found != wanted:
        raise ValueError(
            f"the latents in {folder} are of another model: of {settings.model['path']} "
            f"({settings.model['class']}, hash {wanted[:12]}), and this {type(opened).__name__} has the hash "
            f"{found[:12]}: encode the images with this model into another folder, or give the model that "
            "they are of, in the dtype that it had then"
        )
    if normalisation_of(opened) != settings.normalisation:
        raise ValueError(
            f"the latents in {folder} are of this model at another scale or shift, which it had when they "
            "were encoded: encode anew into another folder, or give the model as it was"
        )
