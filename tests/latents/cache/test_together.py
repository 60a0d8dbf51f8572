import pytest

from latentae.latents.cache.together import fails_anywhere, on_main


def test_alone():
    done = []
    on_main(lambda: done.append(1), "count")
    assert done == [1]
    assert fails_anywhere(True) is True
    assert fails_anywhere(False) is False


def test_what_the_first_process_raises_is_raised():
    def fail():
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"):
        on_main(fail, "write")


def test_other_ranks_do_nothing_and_hear_of_a_failure(monkeypatch):
    monkeypatch.setattr("latentae.distributed.is_main", lambda: False)
    done = []
    on_main(lambda: done.append(1), "write")
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda tensor: tensor + 1)
    with pytest.raises(ValueError, match="the first process could not write"):
        on_main(lambda: done.append(1), "write")
    assert done == []
