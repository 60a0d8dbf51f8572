from pathlib import Path

from latentae.export import ExportReport


def test_the_largest_error():
    report = ExportReport(Path("a"), "ldm", ("a",), {"encode": 1e-7, "decode": 3e-6}, 1e-4, "load it")
    assert report.max_error == 3e-6
