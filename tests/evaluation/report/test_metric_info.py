from latentae.evaluation.report.metric_info import METRICS


def test_every_metric_is_explained():
    for name, info in METRICS.items():
        assert name == name.lower()
        assert info.label
        assert info.meaning
        assert info.digits >= 1
    assert METRICS["psnr"].better == "higher"
    assert METRICS["rfid"].better == "lower"
