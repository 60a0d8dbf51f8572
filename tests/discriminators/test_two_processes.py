"""Two ranks against one process with a batch twice as large: discriminators alone, in float64."""

from tests.processes import launch


def test_ranks_with_spectral_norm_equal_one_process():
    """Forwards change these networks, and the ranks never exchange what they change."""
    launch("tests/discriminators/learn_in_ranks.py", 2)
