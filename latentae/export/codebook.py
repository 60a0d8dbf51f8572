"""A plain codebook for formats that know no other quantizer."""

from __future__ import annotations

from latentae.models import KLVAE, VQVAE


def write_out_codebook(model: KLVAE | VQVAE) -> list[str]:
    """Puts a plain codebook into a VQ model, in place, which gives every latent the code it had.

    Returns:
        a remark where that changed anything.

    Raises:
        ValueError: the stock class cannot hold the model; what it needs instead.
    """
    if not isinstance(model, VQVAE):
        return []
    if model.stock_objection is not None:
        raise ValueError(
            f"{model.stock_objection}. Keep the model as it is, or write it with save_pretrained: "
            "latentae.load_autoencoder opens it, and nothing else does"
        )
    kind = (model.config.quantizer or {}).get("type")
    if not model.write_out_codebook():
        return []
    return [f"the codes of quantizer {kind!r} were written out as a plain codebook, with the same indices"]
