"""The networks, by name."""

from typing import Any

import tensorflow as tf

from han_tf.errors import UserError
from han_tf.models.han import HAN

MODELS = {
    "han_small": {"strides": (2, 1, 1)},
    "han_medium": {"strides": (1, 2, 1)},
    "han_large": {"strides": (1, 1, 2)},
}
"""Model name -> the arguments that make it (Table 1)."""


def create_model(name: str, **arguments: Any) -> HAN:
    """Returns the network called ``name``, built, with ``arguments`` over its own.

    Raises:
      UserError: there is no such network, or an argument does not fit.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} does not exist, expected one of {', '.join(MODELS)}")
    try:
        model = HAN(**{**MODELS[name], **arguments})
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name}: {error}") from error
    # One pass makes the variables, so that a checkpoint can be compared with them before it is read.
    branches = model.branches(tf.zeros([1, *model.input_size, 3]))
    if model.num_classes:
        model.classify(branches)
    return model
