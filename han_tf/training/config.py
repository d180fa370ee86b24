"""What a training run is made of, as written into its folder."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from han_tf.errors import UserError

NEUTRAL = ("data_dir", "eval_every", "keep_checkpoints", "panel_images", "cache_mb", "skip_bad_images")
"""Settings that may change between the parts of a resumed run: they do not change what is learned."""

OF_DATA = ("num_classes", "num_images", "fingerprints")
"""What a run's config.json tells of its data, beside the settings."""

CROSS_ENTROPY, TRIPLET = "cross_entropy", "triplet"
LOSSES = {
    CROSS_ENTROPY: (CROSS_ENTROPY,),
    TRIPLET: (TRIPLET,),
    f"{CROSS_ENTROPY}+{TRIPLET}": (CROSS_ENTROPY, TRIPLET),
}
"""Objective (Table 11) -> the losses that each branch adds up."""

MINING = ("hard", "semihard")
"""How the triplet loss may choose a batch's triplets, see :class:`han_tf.training.losses.TripletLoss`."""

OF_TRIPLET = ("mining", "margin", "people", "images_per_person")
"""Settings that say something in a run with the triplet loss alone."""

NAMED = ("dataset", "split", "model", "epochs", "seed")
"""Settings that the name of a run always tells."""


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
      spatial, channel, hard: whether these types of attention take part (Table 9).
      interaction: whether the branches interact, eq. (8) (Table 10).
      weights: file of ImageNet weights to start from, for networks that take one; ``""`` for random weights.
      epochs: passes over the training images; the learning rate drops after 1/3, 2/3 and 5/6 of them.
      batch_size: images per step.
      loss: a key of :data:`LOSSES`; it acts on each branch, and the branches' losses are added up.
      mining: one of :data:`MINING`.
      margin: of the triplet loss, in units of distance between features of unit norm.
      people, images_per_person: P and K of a batch with the triplet loss, where P·K is ``batch_size``, see
        :class:`han_tf.data.sampling.PeopleAndImages`.
      horizontal_flip, random_erasing: augmentations in use, see :mod:`han_tf.data.augmentation`.
      lr: initial learning rate.
      lr_decay: factor of each drop.
      momentum: of stochastic gradient descent.
      weight_decay: λ of the penalty λ/2·‖w‖² on every kernel.
      localisation_lr: factor on the learning rate of the layers that place the regions.
      seed: of the weights, of the order of images and of their augmentation.
      eval_every: epochs between evaluations; 0 for six of them over the run. The end is always evaluated.
      keep_checkpoints: how many of the newest checkpoints stay.
      panel_images: how many images TensorBoard shows the attention on.
      cache_mb: largest decoded training set kept in memory, in MiB; a larger one goes to a file.
      skip_bad_images: leave out image files that cannot be decoded.

    Raises:
      UserError: there is no such loss or mining, or settings contradict each other.
    """

    dataset: str = "synthetic"
    split: str = ""
    data_dir: str = ""
    model: str = "han_small"
    input_height: int = 160
    input_width: int = 64
    feature_dim: int = 1024
    spatial: bool = True
    channel: bool = True
    hard: bool = True
    interaction: bool = True
    weights: str = ""
    epochs: int = 300
    batch_size: int = 32
    loss: str = CROSS_ENTROPY
    mining: str = "hard"
    margin: float = 0.3
    people: int = 8
    images_per_person: int = 4
    horizontal_flip: bool = False
    random_erasing: bool = False
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

    def __post_init__(self):
        for name, known in (("loss", LOSSES), ("mining", MINING)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if TRIPLET in LOSSES[self.loss]:
            if self.people * self.images_per_person != self.batch_size:
                raise UserError(
                    f"--people {self.people} times --images_per_person {self.images_per_person} is "
                    f"{self.people * self.images_per_person}, but --batch_size is {self.batch_size}: expected the same"
                )
            return
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in OF_TRIPLET and value != field.default:
                raise UserError(f"--{field.name} {value} is a setting of the triplet loss, but --loss is {self.loss}")

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.input_height, self.input_width

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.eval_every or max(1, self.epochs // 6)

    def run_name(self) -> str:
        """Returns the name of the run's folder, so that the same command finds it again and no other one does.

        What decides on the weights and is not the default is told: ``market1501-han_large-hard_False-300epochs-seed0``;
        of a path its last part.
        """
        split = f"-{self.split}" if self.split else ""
        changed = "".join(
            f"-{field.name}_{Path(str(getattr(self, field.name))).name}"
            for field in fields(self)
            if field.name not in NAMED + NEUTRAL and getattr(self, field.name) != field.default
        )
        return f"{self.dataset}{split}-{self.model}{changed}-{self.epochs}epochs-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "TrainConfig":
        """Returns the settings that :meth:`to_dict` gave.

        A setting that is missing has its default: a run that knew nothing of it did what is the default now.

        Raises:
          UserError: ``values`` holds other settings; ``where`` is named.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"{where}: setting {unknown[0]!r} is unknown, expected a run of this version")
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
