"""The networks by name. A network's module, which imports TensorFlow, is imported when the network is made."""

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from han_tf.common.errors import UserError
from han_tf.common.run_files import CONFIG
from han_tf.weights import read_arrays, resolve, shipped_names

if TYPE_CHECKING:
    from han_tf.models.network import ReIDNetwork


class Entry(NamedTuple):
    """A network's class and its arguments.

    Attributes:
      factory: the class, or its module and name below this package, e.g. ``han.HAN``.
      arguments: of the constructor.
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
    # Table 12, whose depthwise unit is that of HAN Large
    "han_inception": Entry("han.HAN", {"unit": "inception"}),
    "han_residual": Entry("han.HAN", {"unit": "residual"}),
    # Table 7
    "mobilenet": Entry("applications.MobileNet", {}),
    "shufflenet": Entry("shufflenet.ShuffleNet", {}),
    "condensenet": Entry("condensenet.CondenseNet", {}),
    # Tables 5 and 6, Fig. 6
    "resnet50": Entry("applications.ResNet50", {}),
}
"""Model name -> class and arguments."""

SWITCHES = ("spatial", "channel", "hard", "interaction")
"""Parts that an ablation switches off (Tables 9 and 10); on if a run's settings lack them."""


def switched_off(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the arguments for the parts that a run's settings switch off: a network without attention has none."""
    return {name: False for name in SWITCHES if not settings.get(name, True)}


def create_model(name: str, **arguments: Any) -> "ReIDNetwork":
    """Returns the network called ``name``, built; ``arguments`` override those of :data:`MODELS`.

    ``weights="market1501"`` loads weights that come with the package (``python -m han_tf.weights`` lists them);
    ``weights`` of MobileNet and ResNet50 is a file of ImageNet weights.

    Raises:
      UserError: there is no such network, an argument does not fit, or the shipped weights are damaged.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} does not exist, expected one of {', '.join(MODELS)}")
    factory = MODELS[name].load()
    _, *known = inspect.signature(factory.__init__).parameters
    shipped = f"{name}-{arguments.get('weights')}"
    if shipped in shipped_names():
        del arguments["weights"]
        return _with_shipped_weights(name, shipped, arguments)
    if "weights" in arguments and "weights" not in known:
        own = [found.removeprefix(f"{name}-") for found in shipped_names() if found.startswith(f"{name}-")]
        expected = f"one of {', '.join(own)}" if own else "none: no weights of it come with the package"
        raise UserError(f"model {name} has no weights {arguments['weights']!r}, expected {expected}")
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise UserError(f"model {name} has no argument {unknown[0]!r}, expected some of {', '.join(known)}")
    try:
        model = factory(**{**MODELS[name].arguments, **arguments})
        # So that a checkpoint can be compared with the variables before it is read.
        model.make_variables()
    except (TypeError, ValueError, OverflowError) as error:  # OverflowError: of an infinite size
        raise UserError(f"model {name}: {error}") from error
    return model


def _with_shipped_weights(name: str, shipped: str, arguments: Mapping[str, Any]) -> "ReIDNetwork":
    """Returns a network with shipped weights, made with its training's arguments, which ``arguments`` override."""
    from han_tf.models.transfer import take_over

    folder = resolve(shipped)
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    trained = {
        "input_size": (settings["input_height"], settings["input_width"]),
        "feature_dim": settings["feature_dim"],
        **switched_off(settings),
        **settings.get("model_args", {}),
    }
    model = create_model(name, **{**trained, **arguments})
    take_over(model, read_arrays(folder), shipped)
    return model


def create_deployed(name: str, **arguments: Any) -> "ReIDNetwork":
    """Returns the network of :func:`create_model` in its deployed form, to count its FLOPs or to time it.

    Raises:
      UserError: as :func:`create_model`.
    """
    model = create_model(name, **arguments)
    model.begin_step(1, 1)
    return model.deployed()
