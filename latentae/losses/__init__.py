"""Losses: each a plain function or module, and the objective that sums them."""
