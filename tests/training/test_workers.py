"""The number of worker processes changes nothing but the speed, with several ranks too."""

import json

from tests.processes import launch
from tests.training.conftest import TINY, draw_images
from tests.training.launch import log_lines


def test_two_ranks_log_the_same_with_and_without_workers(tmp_path):
    draw_images(tmp_path / "images", count=11)
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path))
    shared = ["--config", str(tmp_path / "tiny.yaml"), "loss.perceptual=null", "log_every=1"]
    runs = [
        ("vqgan", [*shared, f"data.num_workers={number}", f"output_dir={tmp_path}/workers_{number}"])
        for number in (0, 2)
    ]
    launch("tests/training/train_in_ranks.py", 2, json.dumps(runs))
    without, with_workers = (log_lines(tmp_path / f"workers_{number}") for number in (0, 2))
    assert [line["step"] for line in without] == [1, 2, 3, 4, 5, 6]
    assert with_workers == without
