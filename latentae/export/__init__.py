"""Export: models in the formats that others read."""

from latentae.export.diffusers import export_diffusers

__all__ = ["export_diffusers"]
