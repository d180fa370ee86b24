"""The networks, by name. Their modules, which import TensorFlow, are imported when one is made."""

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from han_tf.errors import UserError

if TYPE_CHECKING:
    from han_tf.models.network import ReIDNetwork


class Entry(NamedTuple):
    """How a network is made.

    Attributes:
      factory: its class, or module and name of it below this package: ``han.HAN``.
      arguments: what it is called with.
    """

    factory: "str | type[ReIDNetwork]"
    arguments: Mapping[str, Any]

    def load(self) -> "type[ReIDNetwork]":
        """Returns the class."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.partition(".")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


MODELS = {
    # Table 1
    "han_small": Entry("han.HAN", {"strides": (2, 1, 1)}),
    "han_medium": Entry("han.HAN", {"strides": (1, 2, 1)}),
    "han_large": Entry("han.HAN", {"strides": (1, 1, 2)}),
    # Table 12, where HAN Large stands for the depthwise unit
    "han_inception": Entry("han.HAN", {"unit": "inception"}),
    "han_residual": Entry("han.HAN", {"unit": "residual"}),
    # Table 7
    "mobilenet": Entry("applications.MobileNet", {}),
    "shufflenet": Entry("shufflenet.ShuffleNet", {}),
    "condensenet": Entry("condensenet.CondenseNet", {}),
    # Tables 5 and 6, Fig. 6
    "resnet50": Entry("applications.ResNet50", {}),
}
"""Model name -> how it is made."""


def create_model(name: str, **arguments: Any) -> "ReIDNetwork":
    """Returns the network called ``name``, built, with ``arguments`` over its own.

    Raises:
      UserError: there is no such network, or an argument does not fit.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} does not exist, expected one of {', '.join(MODELS)}")
    factory = MODELS[name].load()
    _, *known = inspect.signature(factory.__init__).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise UserError(f"model {name} has no argument {unknown[0]!r}, expected some of {', '.join(known)}")
    try:
        model = factory(**{**MODELS[name].arguments, **arguments})
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name}: {error}") from error
    # A checkpoint can then be compared with the variables before it is read.
    model.make_variables()
    return model


def create_deployed(name: str, **arguments: Any) -> "ReIDNetwork":
    """Returns what :func:`create_model` does, in the form in which it is deployed after training: to count or to time.

    Raises:
      UserError: as :func:`create_model`.
    """
    model = create_model(name, **arguments)
    model.begin_step(1, 1)
    return model.deployed()
