"""The networks, by name."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from han_tf.errors import UserError
from han_tf.models.applications import MobileNet, ResNet50
from han_tf.models.condensenet import CondenseNet
from han_tf.models.han import HAN
from han_tf.models.network import ReIDNetwork
from han_tf.models.shufflenet import ShuffleNet


class Entry(NamedTuple):
    """How a network is made.

    Attributes:
      factory: its class.
      arguments: what it is called with.
    """

    factory: type[ReIDNetwork]
    arguments: Mapping[str, Any]


MODELS = {
    # Table 1
    "han_small": Entry(HAN, {"strides": (2, 1, 1)}),
    "han_medium": Entry(HAN, {"strides": (1, 2, 1)}),
    "han_large": Entry(HAN, {"strides": (1, 1, 2)}),
    # Table 12, where HAN Large stands for the depthwise unit
    "han_inception": Entry(HAN, {"unit": "inception"}),
    "han_residual": Entry(HAN, {"unit": "residual"}),
    # Table 7
    "mobilenet": Entry(MobileNet, {}),
    "shufflenet": Entry(ShuffleNet, {}),
    "condensenet": Entry(CondenseNet, {}),
    # Tables 5 and 6, Fig. 6
    "resnet50": Entry(ResNet50, {}),
}
"""Model name -> how it is made."""


def create_model(name: str, **arguments: Any) -> ReIDNetwork:
    """Returns the network called ``name``, built, with ``arguments`` over its own.

    Raises:
      UserError: there is no such network, or an argument does not fit.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} does not exist, expected one of {', '.join(MODELS)}")
    entry = MODELS[name]
    _, *known = inspect.signature(entry.factory.__init__).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise UserError(f"model {name} has no argument {unknown[0]!r}, expected some of {', '.join(known)}")
    try:
        model = entry.factory(**{**entry.arguments, **arguments})
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name}: {error}") from error
    # A checkpoint can then be compared with the variables before it is read.
    model.make_variables()
    return model


def create_deployed(name: str, **arguments: Any) -> ReIDNetwork:
    """Returns what :func:`create_model` does, in the form in which it is deployed after training: to count or to time.

    Raises:
      UserError: as :func:`create_model`.
    """
    model = create_model(name, **arguments)
    model.begin_step(1, 1)
    return model.deployed()
