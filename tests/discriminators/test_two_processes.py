"""Two ranks against one process with a batch twice as large: discriminators alone, in float64."""

import json

from tests.processes import launch


def test_ranks_with_spectral_norm_equal_one_process(tmp_path):
    """Forwards change these networks, and the ranks never exchange what they change."""
    launch("tests/discriminators/learn_in_ranks.py", 2, str(tmp_path))
    for rank in (0, 1):  # how many tensors each of them has found equal
        compared = json.loads((tmp_path / f"{rank}.json").read_text())
        assert compared.keys() == {"frozen_features", "wavelet", "patchgan"}
        assert min(compared.values()) > 50
