"""Names of the files in a training run's folder."""

CONFIG = "config.json"
"""The run's settings, see :class:`han_tf.training.config.TrainConfig`."""

ENVIRONMENT = "environment.json"
"""Command, commit, packages and machine, see :mod:`han_tf.runs.environment`."""

HISTORY = "history.json"
"""One row for each epoch."""

UNFINISHED = "unfinished.json"
"""Statistics of an epoch that was stopped, for when it goes on."""

METRICS = "metrics.json"
"""The evaluation at the end of the training."""

EVALUATION = "evaluation.json"
"""The newest evaluation of the last network on the run's own data, by ``han_tf.evaluate``."""
