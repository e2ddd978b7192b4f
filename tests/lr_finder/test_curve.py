"""What a curve suggests."""

import math

import pytest

from trainer_lr_finder.curve import Curve


def make(losses, smoothing=0.0):
    curve = Curve(smoothing)
    for place, loss in enumerate(losses):
        curve.add(10.0**place, loss)
    return curve


def test_the_valley_is_in_the_middle_of_the_longest_way_down():
    curve = make([5, 5, 5, 4, 3, 3.5, 2, 1, 0.5, 9])
    assert curve.suggest()["valley"] == 10.0 ** ((3 + 7) // 2)


def test_the_steepest_place_is_where_the_loss_falls_fastest():
    assert make([9, 8.9, 8.8, 8.7, 6, 3, 2.9, 2.8, 20])
    assert make([9, 8.9, 8.8, 8.7, 6, 3, 2.9, 2.8, 20]).suggest()["steepest"] == 1e4


@pytest.mark.parametrize("losses", [[], [1.0], [1.0] * 9, [1, 2, 3, 4, 5, 6, 7], [3, 2, 9, 9, 9]])
def test_a_loss_that_hardly_falls_suggests_nothing(losses):
    assert make(losses).suggest() == {}


def test_the_running_mean_is_not_pulled_by_its_start():
    curve = make([2.0] * 4, smoothing=0.9)
    assert curve.smoothed == pytest.approx([2.0] * 4)


def test_a_picture_is_written_of_any_curve(tmp_path):
    for losses in ([3.0], [1.0] * 4, [9, 8, 7, 6, 5, 4, 3, 50, math.e]):
        curve = make(losses)
        curve.draw(tmp_path / "curve.png", curve.suggest(), "valley")
        assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
