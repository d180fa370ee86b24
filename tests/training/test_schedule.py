"""The three-step schedule."""

import pytest

from han_tf.training.schedule import drop_epochs, learning_rate


def test_the_papers_schedule():
    assert drop_epochs(300) == (100, 200, 250)
    rates = {epoch: learning_rate(epoch, 300, 0.03, 0.1) for epoch in (0, 99, 100, 199, 200, 249, 250, 299)}
    expected = {0: 3e-2, 99: 3e-2, 100: 3e-3, 199: 3e-3, 200: 3e-4, 249: 3e-4, 250: 3e-5, 299: 3e-5}
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epochs", "drops"),
    [(24, (8, 16, 20)), (30, (10, 20, 25)), (12, (4, 8, 10)), (6, (2, 4, 5)), (3, (1, 2, 2)), (1, (1, 1, 1))],
)
def test_drops_scale_with_the_epochs(epochs, drops):
    assert drop_epochs(epochs) == drops


def test_other_drops():
    assert drop_epochs(40, (3 / 4, 9 / 10, 19 / 20)) == (30, 36, 38)
    rates = [learning_rate(epoch, 40, 0.03, 0.1, (3 / 4, 9 / 10)) for epoch in (0, 29, 30, 35, 36, 39)]
    assert rates == pytest.approx([3e-2, 3e-2, 3e-3, 3e-3, 3e-4, 3e-4])
    assert {learning_rate(epoch, 40, 0.03, 0.1, ()) for epoch in range(40)} == {0.03}


@pytest.mark.parametrize("epochs", range(1, 40))
def test_the_rate_never_rises_and_starts_at_the_initial_one(epochs):
    rates = [learning_rate(epoch, epochs, 0.03, 0.1) for epoch in range(epochs)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.03
