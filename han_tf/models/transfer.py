"""Copies weights from one network to another, by their names."""

from collections import deque
from collections.abc import Mapping
from typing import Union

import numpy as np
import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.models.network import ReIDNetwork


def named_variables(model: ReIDNetwork, classifiers: bool = True) -> dict[str, tf.Variable]:
    """Returns the network's variables by their names in checkpoints: ``stem/conv/kernel``, …

    Args:
      model: the network.
      classifiers: whether to include those of the classifiers.
    """
    view = tf.train.TrackableView(model)
    names: dict[str, tf.Variable] = {}
    seen = {id(model)}
    left = deque([("", model)])
    while left:
        prefix, node = left.popleft()
        for name, child in sorted(view.children(node).items()):
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = f"{prefix}{name}"
            if isinstance(child, tf.Variable):
                names[path] = child
            else:
                left.append((f"{path}/", child))
    if not classifiers:
        heads = tuple(f"{branch}_classifier/" for branch in model.branch_names)
        names = {name: variable for name, variable in names.items() if not name.startswith(heads)}
    return dict(sorted(names.items()))


def take_over(
    model: ReIDNetwork,
    arrays: Mapping[str, Union[np.ndarray, tf.Variable]],
    where: str,
    classifiers: bool = False,
) -> None:
    """Copies the weights of another network into a network.

    Args:
      model: the network.
      arrays: values by the names of :func:`named_variables`; names that the network lacks are ignored.
      where: name of their source in errors.
      classifiers: whether to copy those of the classifiers, too.

    Raises:
      UserError: a variable's value is missing or has another shape, that is, the networks differ.
    """
    wanted = named_variables(model, classifiers)
    for name, variable in wanted.items():
        if name not in arrays:
            raise UserError(f"{where}: no weights {name}, expected those of a network like this one ({model.name})")
        if tuple(arrays[name].shape) != tuple(variable.shape):
            found, expected = tuple(arrays[name].shape), tuple(variable.shape)
            raise UserError(f"{where}: weights {name} have shape {found}, expected {expected} as in this network")
    for name, variable in wanted.items():
        value = arrays[name]
        if isinstance(value, np.ndarray):  # without AVX-512, TensorFlow's cast of float16 logs an error
            value = value.astype(variable.dtype.as_numpy_dtype)
        variable.assign(tf.cast(value, variable.dtype))
