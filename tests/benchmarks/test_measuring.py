import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measuring import FlopCount, in_turns, print_head, print_row, ratios, show_ratio

CPU = torch.device("cpu")


def test_operations_of_a_convolution_and_its_gradients():
    images = torch.zeros(2, 3, 5, 5, requires_grad=True)
    weight = torch.zeros(4, 3, 3, 3, requires_grad=True)
    with FlopCount() as count:
        result = F.conv2d(images, weight, padding=1)
    assert count.total == 2 * (2 * 4 * 25) * (3 * 9)
    with FlopCount() as backward:
        result.sum().backward()
    assert backward.total == 2 * count.total


def test_ratios_are_of_each_round():
    assert ratios([2.0, 3.0, 8.0], [1.0, 3.0, 2.0]) == (2.0, 1.0, 4.0)
    assert show_ratio([2.0, 3.0, 8.0], [1.0, 3.0, 2.0]) == "2.00 (1.00 to 4.00)"


def test_operations_of_a_gradient_with_respect_to_a_leaf():
    images = torch.zeros(2, 3, 5, 5, requires_grad=True)
    with FlopCount() as count:
        torch.autograd.grad(F.conv2d(images, torch.zeros(4, 3, 3, 3)).sum(), images)
    assert count.total == 2 * (2 * (2 * 4 * 9) * (3 * 9))


def test_tables_are_markdown(capsys):
    print_head("name", "s")
    print_row("a|b", 1)
    assert capsys.readouterr().out == "| name | s |\n| --- | ---: |\n| a/b | 1 |\n"


def test_turns_are_taken_and_the_first_does_not_count():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    measured = in_turns(runs, 2, CPU)
    assert order == ["a", "b"] * 3
    assert {name: len(spent) for name, spent in measured.items()} == {"a": 2, "b": 2}


_TWO_AT_ONCE = """
import torch
from benchmarks.measuring import peak_memory

def run():
    first = torch.ones(16 * 2**20)  # 64 MiB
    second = first * 2
    del first, second

print(peak_memory(run, torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's status from Linux")
def test_the_peak_is_what_was_held_at_once():
    # A fresh process: memory that earlier tests freed may still belong to this one, and would be reused.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _TWO_AT_ONCE]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(finished.stdout) == pytest.approx(128, abs=16)
