"""Evaluation: how close reconstructions are to their images."""
