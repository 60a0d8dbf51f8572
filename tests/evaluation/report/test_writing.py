import pytest

from latentae.evaluation.report import writing
from latentae.evaluation.report.results import Results
from latentae.evaluation.report.writing import write_report


def test_three_files(report):
    results, folder = report
    write_report(results, folder)
    assert Results.load(folder) == results
    assert (folder / "results.md").read_text().startswith("# Reconstruction of 70 images, native")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in folder.iterdir()) == [
        "pictures",
        "report.html",
        "results.json",
        "results.md",
    ]


def test_no_results_before_the_page_is_there(report, monkeypatch):
    results, folder = report

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(writing.page, "render", fail)
    with pytest.raises(OSError, match="full"):
        write_report(results, folder)
    assert not (folder / "results.json").exists()


def test_names_that_are_no_utf_8_are_escaped(report):
    results, folder = report
    results.protocol["data"]["name"] = "caf\udce9"
    write_report(results, folder)
    assert Results.load(folder).protocol["data"]["name"] == "caf\udce9"
    assert rb"caf\udce9" in (folder / "results.md").read_bytes()
