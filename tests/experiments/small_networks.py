"""Small networks under the names of the paper's, so that a training takes a second or two."""

from han_tf.models import MODELS, Entry
from tests.training.conftest import Colours

SMALL = {"widths": (16, 16), "strides": (2,)}
"""A HAN of two levels, the fewest with interaction between them, and of one unit each."""


def small_networks():
    """Returns an entry for each network of the registry."""
    return {
        name: Entry(entry.factory, {**entry.arguments, **SMALL}) if name.startswith("han_") else Entry(Colours, {})
        for name, entry in MODELS.items()
    }
