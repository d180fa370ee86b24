"""What a training run is made of, as written into its folder."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from han_tf.errors import UserError

NEUTRAL = ("data_dir", "eval_every", "keep_checkpoints", "panel_images", "cache_mb", "skip_bad_images")
"""Settings that may change between the parts of a resumed run: they do not change what is learned."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (Sec. 4, Implementation Details).

    Attributes:
      dataset: registry name of the data set.
      split: its protocol variant; ``""`` for its default.
      data_dir: where its files are; ``""`` for the default folder.
      model: registry name of the network.
      input_height, input_width: image size, in pixels.
      feature_dim: dimension of the joint feature.
      epochs: passes over the training images; the learning rate drops after 1/3, 2/3 and 5/6 of them.
      batch_size: images per step.
      lr: initial learning rate.
      lr_decay: factor of each drop.
      momentum: of stochastic gradient descent.
      weight_decay: λ of the penalty λ/2·‖w‖² on every kernel.
      localisation_lr: factor on the learning rate of the layers that place the regions.
      seed: of the weights and of the order of images.
      eval_every: epochs between evaluations; 0 for six of them over the run. The end is always evaluated.
      keep_checkpoints: how many of the newest checkpoints stay.
      panel_images: how many images TensorBoard shows the attention on.
      cache_mb: largest decoded training set kept in memory, in MiB; a larger one goes to a file.
      skip_bad_images: leave out image files that cannot be decoded.
    """

    dataset: str = "synthetic"
    split: str = ""
    data_dir: str = ""
    model: str = "han_small"
    input_height: int = 160
    input_width: int = 64
    feature_dim: int = 1024
    epochs: int = 300
    batch_size: int = 32
    lr: float = 0.03
    lr_decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    localisation_lr: float = 0.01
    seed: int = 0
    eval_every: int = 0
    keep_checkpoints: int = 2
    panel_images: int = 8
    cache_mb: int = 4096
    skip_bad_images: bool = False

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.input_height, self.input_width

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.eval_every or max(1, self.epochs // 6)

    def run_name(self) -> str:
        """Returns the name of the run's folder, so that the same command finds it again."""
        split = f"-{self.split}" if self.split else ""
        return f"{self.dataset}{split}-{self.model}-{self.epochs}epochs-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "TrainConfig":
        """Returns the settings that :meth:`to_dict` gave.

        Raises:
          UserError: ``values`` holds other settings; ``where`` is named.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            odd = sorted(set(values) ^ known)[0]
            raise UserError(f"{where}: setting {odd!r} is missing or unknown, expected a run of this version")
        return cls(**values)

    def check_resumable(self, saved: "TrainConfig", where: str) -> None:
        """Raises UserError if a run with the settings ``saved`` cannot go on with these."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(saved, field.name)
            if mine != theirs and field.name not in NEUTRAL:
                raise UserError(
                    f"{where} holds a run with --{field.name} {theirs}, this command has {mine}; "
                    "give another --run_dir, or the same flags to go on with that run"
                )
