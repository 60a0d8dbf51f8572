"""Losses: plain functions and modules, and the objective that sums them."""
