from latentae.evaluation.report.remarks import remarks
from latentae.evaluation.report.results import Results


def test_each_sentence_once(report):
    results, _ = report
    assert remarks(results) == ["Careful.", "Of kl only. (kl)", "Of a <b> & c only. (a <b> & c)"]
    assert remarks(Results({}, {})) == []
