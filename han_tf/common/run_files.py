"""What the files in a training run's folder are called."""

CONFIG = "config.json"
"""What the run was made of, see :class:`han_tf.training.config.TrainConfig`."""

ENVIRONMENT = "environment.json"
"""By what, when and where it was made, see :mod:`han_tf.runs.environment`."""

HISTORY = "history.json"
"""A row for each epoch."""

METRICS = "metrics.json"
"""The evaluation at the end of the training."""

EVALUATION = "evaluation.json"
"""A later one."""
