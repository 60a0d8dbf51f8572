import pytest
import torch


@pytest.fixture
def run_all(script):
    return script("run_all")


def test_a_page_keeps_the_notes_of_the_one_before(run_all):
    before = "# The training step\n\nold numbers\n\n## Notes\n\nWhat did not help.\n"
    page = run_all.page("step", "bench_step.py --rounds 3", "| new |\n\n", before)
    assert page == (
        "# The training step\n\nWritten by `python benchmarks/bench_step.py --rounds 3`.\n\n| new |\n"
        "\n## Notes\n\nWhat did not help.\n"
    )


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("Intel(R) Xeon(R) Processor", "xeon-avx2"),
        ("AMD EPYC 9654", "epyc-avx2"),
        ("Strange 1.0", "strange-1-0-avx2"),
    ],
)
def test_files_are_named_after_the_hardware(run_all, monkeypatch, processor, name):
    monkeypatch.setattr(run_all, "hardware", lambda: processor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert run_all.hardware_name() == name
