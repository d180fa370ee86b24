"""The layers that the networks are made of."""

import han_tf.layers.keras_version  # noqa: F401  # checked before a layer is defined
