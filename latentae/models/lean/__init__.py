"""Encoders and decoders that keep less for the backward pass: ``make_lean``."""

from latentae.models.lean.apply import make_lean, make_stock

__all__ = ["make_lean", "make_stock"]
