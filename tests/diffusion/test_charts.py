import re

from latentae.diffusion.charts import loss_charts
from latentae.diffusion.training import CurvePoint
from tests.diffusion.test_results import example


def test_curves_lie_where_their_numbers_say():
    curves = {name: model.curve for name, model in example().models.items()}
    relative, plain = loss_charts(curves)
    (path,) = set(re.findall(r'<path d="(M[^"]*L[^"]*)"', relative))  # both are the same
    points = [tuple(map(float, point.split())) for point in path[1:].split(" L")]
    assert [x for x, _ in points] == [(44 + 330) / 2, 330.0]
    assert points[0][1] < points[1][1]  # a lower loss is further down
    assert len(set(re.findall(r'<path d="(M[^"]*L[^"]*)"', plain))) == 2
    assert "10 steps" in plain
    assert re.findall(r"</svg> (\w)</span>", plain) == ["a", "b"]


def test_a_curve_of_one_point_and_names_that_are_html():
    charts = loss_charts({"<b>": [CurvePoint(1, 0.0, 1.0, 1.0, 1.0)]})
    assert "&lt;b&gt;" in charts[0]
    assert "<b>" not in charts[0]
    assert loss_charts({}) == ["", ""]
