"""A network that trains fast."""

import pytest
import tensorflow as tf

from han_tf.models import MODELS, Entry
from han_tf.models.network import ReIDNetwork


class Colours(ReIDNetwork):
    """A small network with one branch and without attention."""

    def __init__(self, num_classes=0, input_size=(48, 32), feature_dim=8):
        super().__init__(num_classes, input_size, feature_dim, "colours")
        self.add_heads()

    def pooled(self, pixels, training=None):
        return {"global": tf.reduce_mean(pixels, axis=[1, 2])}, ()

    def body_parts(self):
        return {}


@pytest.fixture
def colours(monkeypatch):
    """The registry name of :class:`Colours`."""
    monkeypatch.setitem(MODELS, "colours", Entry(Colours, {}))
    return "colours"
