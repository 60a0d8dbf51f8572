import pytest

from latentae.cli import main
from latentae.report.results import Results, Value


@pytest.fixture
def reports(tmp_path):
    for name, batch_size in (("a", 16), ("b", 8)):
        (tmp_path / name).mkdir()
        results = Results({"name": "native", "batch_size": batch_size}, {"kl": {"psnr": Value(20.0)}})
        (tmp_path / name / "results.json").write_text(results.to_json(), encoding="utf-8")
    return tmp_path


def test_two_reports(reports, capsys):
    assert main(["compare", str(reports / "a"), str(reports / "b/results.json")]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["batch_size", "16", "8", "by", "rounding", "only"] in lines
    assert ["PSNR", "20.00", "20.00", "0"] in lines


@pytest.mark.parametrize(
    ("second", "says"),
    [("c", "c: "), ("a/text", "this is not the results.json of an evaluation")],
)
def test_no_report(second, says, reports, capsys):
    (reports / "a/text").write_text("no JSON")
    assert main(["compare", str(reports / "a"), str(reports / second)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error


def test_help(capsys):
    assert main(["compare", "--help"]) == 0
    assert "REPORT" in capsys.readouterr().out
    assert main(["compare"]) == 2
