from latentae.evaluation.progress import Progress, duration


def test_a_line_now_and_then_and_at_the_end():
    said, clock = [], [0.0]
    progress = Progress(100, said.append, every=10, now=lambda: clock[0])
    for moment in (4.0, 12.0, 15.0, 25.0):
        clock[0] = moment
        progress.add(25)
    assert said == [
        "50 of 100 reconstructions measured, 4.2 a second, 12 s left",
        "100 of 100 reconstructions measured, 4.0 a second",
    ]


def test_durations():
    assert [duration(seconds) for seconds in (3, 600, 9000)] == ["3 s", "10 min", "2.5 h"]


def test_what_is_done_has_a_name():
    said = []
    Progress(1, said.append, now=lambda: 0.0, what="images encoded").add(1)
    assert said[0].startswith("1 of 1 images encoded, ")
