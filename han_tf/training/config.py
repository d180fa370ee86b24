"""The settings of a training run, as written into its folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from han_tf.common.errors import UserError
from han_tf.data import DATASETS
from han_tf.models import MODELS
from han_tf.training.schedule import PAPER_DROPS

NEUTRAL = (
    "data_dir",
    "eval_every",
    "keep_checkpoints",
    "panel_images",
    "cache_mb",
    "skip_bad_images",
    "strategy",
    "xla",
)
"""Settings that may change when a run is resumed: they do not change what is learned.

``strategy`` and ``xla`` change the order of sums and with it the last digits, as another machine does. ``precision``
and ``sync_batch_norm`` are not among them: they change the arithmetic and the statistics, and so the network.
"""

OF_DATA = ("num_classes", "num_images", "replicas", "fingerprints")
"""Entries of a run's config.json about its data and devices, beside the settings."""

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
"""Types that a network may compute in; its weights are float32.

With a mixed one, convolutions and their batch norm compute in the shorter type; region positions, features and losses
in float32. With float16 the objective is scaled.
"""

STRATEGIES = ("one_device", "mirrored", "multi_worker")
"""Devices that a network may be trained on, which share a batch; see :mod:`han_tf.training.devices`."""

CROSS_ENTROPY, TRIPLET = "cross_entropy", "triplet"
LOSSES = {
    CROSS_ENTROPY: (CROSS_ENTROPY,),
    TRIPLET: (TRIPLET,),
    f"{CROSS_ENTROPY}+{TRIPLET}": (CROSS_ENTROPY, TRIPLET),
}
"""Objective (Table 11) -> the losses that are summed for each branch."""

MINING = ("hard", "semihard")
"""How the triplet loss may choose a batch's triplets, see :class:`han_tf.training.losses.TripletLoss`."""

OF_TRIPLET = ("mining", "margin", "people", "images_per_person")
"""Settings that only the triplet loss uses."""

OF_NETWORK = ("num_classes", "input_size", "name")
"""Arguments of a network that a run sets in other ways."""

NAMED = ("dataset", "split", "model", "epochs", "seed")
"""Settings with a fixed place in a run's name."""

DATA, NETWORK, WEIGHTS, TRAINING = "data", "network", "weights to start from", "training"
AUGMENTATION, OPTIMISER, COMPUTATION, EVALUATIONS = (
    "augmentation",
    "optimiser",
    "computation",
    "checkpoints and evaluations",
)
TITLES = (DATA, NETWORK, WEIGHTS, TRAINING, AUGMENTATION, OPTIMISER, COMPUTATION, EVALUATIONS)
"""Headings of the settings in the help of ``han_tf.train``, in their order."""

RECIPES: dict[str, Mapping[str, Any]] = {
    "paper": MappingProxyType({}),
    "strong": MappingProxyType(
        {
            "label_smoothing": 0.1,
            "horizontal_flip": True,
            "random_translation": True,
            "lr_drops": (3 / 4, 9 / 10, 19 / 20),
        }
    ),
}
"""Recipe -> the settings that it changes.

``paper``: none. ``strong``: the augmentation and label smoothing of published trainings from scratch that reached the
paper's numbers at this size, and later drops of the learning rate: after the first drop, a network fits its training
images and learns little more. The parts of ``strong`` have not been measured separately. experiments/RESULTS.md has the
accuracies of both, and of additions to ``strong``, among them the triplet loss, which needs a lower learning rate.
"""


def _setting(
    title: str,
    default: Any,
    help: str,
    lower: Optional[float] = None,
    upper: Optional[float] = None,
    choices: Iterable[str] = (),
) -> Any:
    """Returns a field with the heading, the text, the bounds and the choices of its flag of ``han_tf.train``."""
    told = {"title": title, "help": help, "lower": lower, "upper": upper, "choices": [*choices]}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (Sec. 4, Implementation Details).

    The text of a setting is also the help of its flag. ``recipe`` only names a recipe; :meth:`of_recipe` also puts its
    settings in the place of the defaults. ``model_args`` are arguments of the network's constructor, by name.
    ``lr_drops`` are fractions, ascending in (0, 1).

    Raises:
      UserError: there is no such recipe, loss, mining, precision or strategy, a value is out of range, or settings
        contradict each other.
    """

    dataset: str = _setting(
        DATA,
        "synthetic",
        f"Data set: {', '.join(DATASETS)}; or several, separated by commas: the people and cameras of each stay apart.",
    )
    split: str = _setting(DATA, "", "Protocol variant; its default if empty. For several data sets, one each.")
    data_dir: str = _setting(
        DATA, "", "Data folder; datasets/NAME if empty. For several data sets, one each, separated by commas."
    )
    recipe: str = _setting(
        TRAINING,
        "paper",
        "Settings to start from: the paper's, or ones of higher accuracy; flags that are given override both.",
        choices=RECIPES,
    )
    model: str = _setting(NETWORK, "han_small", "Network (Tables 1 and 12).", choices=MODELS)
    input_height: int = _setting(NETWORK, 160, "Image height, pixels.", 32)
    input_width: int = _setting(NETWORK, 64, "Image width, pixels.", 32)
    feature_dim: int = _setting(NETWORK, 1024, "Dimension of the joint feature (Fig. 6).", 2)
    spatial: bool = _setting(NETWORK, True, "Soft spatial attention (Table 9).")
    channel: bool = _setting(NETWORK, True, "Soft channel attention (Table 9).")
    hard: bool = _setting(NETWORK, True, "Hard attention; if not, the regions are fixed.")
    interaction: bool = _setting(NETWORK, True, "Interaction of the branches, eq. (8) (Table 10).")
    depthwise_norm: bool = _setting(
        NETWORK,
        True,
        "Batch norm and ReLU after the depthwise convolutions, too; after --init_from as in that network.",
    )
    model_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "title": NETWORK,
            "help": "Other arguments of the network, for example regions=6,widths=[96,192,288].",
        },
    )
    weights: str = _setting(
        WEIGHTS, "", "ImageNet weights (.h5) that MobileNet or ResNet50 starts from; random if empty."
    )
    init_from: str = _setting(
        WEIGHTS,
        "",
        "Fine-tuning: folder of a run, or name of a network that comes with the package, from which this network "
        "starts, all but the classifiers. The input size may differ.",
    )
    init_classifiers: bool = _setting(
        WEIGHTS, False, "Take over the classifiers, too; the training images must be the same."
    )
    freeze_epochs: int = _setting(
        WEIGHTS, 0, "Number of first epochs in which only the classifiers are trained, after --init_from.", 0
    )
    epochs: int = _setting(TRAINING, 300, "Passes over the training images.", 1)
    batch_size: int = _setting(TRAINING, 32, "Images per step.", 2)
    loss: str = _setting(
        TRAINING, CROSS_ENTROPY, "Loss of each branch (Table 11), summed over the branches.", choices=LOSSES
    )
    mining: str = _setting(TRAINING, "hard", "Choice of triplets in a batch.", choices=MINING)
    margin: float = _setting(TRAINING, 0.3, "Margin of the triplet loss; features of unit norm are compared.", 0)
    people: int = _setting(
        TRAINING, 8, "P, people per batch with the triplet loss; times --images_per_person it is --batch_size.", 2
    )
    images_per_person: int = _setting(TRAINING, 4, "K, images of each of these people.", 2)
    label_smoothing: float = _setting(
        TRAINING, 0.0, "ε of the cross-entropy: the target is 1 - ε for a person, and ε shared by all; below 1.", 0
    )
    horizontal_flip: bool = _setting(AUGMENTATION, False, "Mirror half of the training images.")
    random_translation: bool = _setting(
        AUGMENTATION, False, "Enlarge half of the training images by 1/8 and crop them back at a random place."
    )
    random_erasing: bool = _setting(AUGMENTATION, False, "Fill a rectangle of half of the training images with noise.")
    lr: float = _setting(OPTIMISER, 0.03, "Initial learning rate.", 0)
    lr_decay: float = _setting(OPTIMISER, 0.1, "Factor of each drop.", 0, 1)
    lr_drops: tuple[float, ...] = _setting(
        OPTIMISER,
        PAPER_DROPS,
        "Fractions of the epochs after which the learning rate drops, for example 3/4,9/10,19/20.",
    )
    momentum: float = _setting(OPTIMISER, 0.9, "Momentum of SGD.", 0, 1)
    weight_decay: float = _setting(OPTIMISER, 5e-4, "λ of λ/2·‖w‖² on the kernels.", 0)
    localisation_lr: float = _setting(
        OPTIMISER, 0.01, "Factor on the learning rate of the layers that place the regions.", 0
    )
    precision: str = _setting(
        COMPUTATION,
        "float32",
        "Type that convolutions compute in; weights, features and losses are float32.",
        choices=PRECISIONS,
    )
    sync_batch_norm: bool = _setting(
        COMPUTATION, True, "Batch norm over the whole batch where several devices share it, not over the part of each."
    )
    strategy: str = _setting(
        COMPUTATION,
        "one_device",
        "Train on one device, on all GPUs of this machine, or on all machines that TF_CONFIG names.",
        choices=STRATEGIES,
    )
    xla: bool = _setting(COMPUTATION, False, "Compile the training step with XLA.")
    seed: int = _setting(
        COMPUTATION, 0, "Seed of the weights, of the images' order and of their augmentation.", 0, 2**32 - 1
    )
    eval_every: int = _setting(
        EVALUATIONS, 0, "Epochs between evaluations; 0 for six over the run. The last epoch is always evaluated.", 0
    )
    keep_checkpoints: int = _setting(EVALUATIONS, 2, "Newest checkpoints kept.", 1)
    panel_images: int = _setting(EVALUATIONS, 8, "Images whose attention TensorBoard shows.", 0)
    cache_mb: int = _setting(
        DATA, 4096, "Largest decoded training set kept in memory, MiB; a larger one goes to a file.", 0
    )
    skip_bad_images: bool = _setting(DATA, False, "Leave out unreadable images instead of stopping.")

    def __post_init__(self):
        object.__setattr__(self, "lr_drops", tuple(self.lr_drops))  # JSON has only lists
        choices = {"recipe": RECIPES, "loss": LOSSES, "mining": MINING, "precision": PRECISIONS, "strategy": STRATEGIES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)!r}, expected one of {', '.join(known)}")
        drops = (0, *self.lr_drops, 1)
        if not all(earlier < later for earlier, later in pairwise(drops)):
            shown = ",".join(map(_short, self.lr_drops))
            raise UserError(f"--lr_drops {shown}, expected ascending parts of the epochs, between 0 and 1")
        for name in ("init_classifiers", "freeze_epochs"):
            if getattr(self, name) and not self.init_from:
                raise UserError(f"--{name} means nothing without --init_from")
        if self.init_from and self.weights:
            raise UserError(f"--init_from {self.init_from} and --weights {self.weights}, expected one of them")
        if self.freeze_epochs and (self.freeze_epochs >= self.epochs or CROSS_ENTROPY not in LOSSES[self.loss]):
            raise UserError(
                f"--freeze_epochs {self.freeze_epochs} with --epochs {self.epochs} and --loss {self.loss}, expected "
                "fewer than the epochs, and a loss with classifiers"
            )
        for name in self.model_args:
            if name in (*OF_NETWORK, *(setting.name for setting in fields(self))):
                raise UserError(
                    f"--model_args {name}=..., expected an argument of the network that has no flag of its own"
                )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label_smoothing {self.label_smoothing}, expected at least 0 and less than 1")
        if self.label_smoothing and CROSS_ENTROPY not in LOSSES[self.loss]:
            raise UserError(f"--label_smoothing {self.label_smoothing} means nothing with --loss {self.loss}")
        if TRIPLET in LOSSES[self.loss]:
            if self.people * self.images_per_person != self.batch_size:
                raise UserError(
                    f"--people {self.people} times --images_per_person {self.images_per_person} is "
                    f"{self.people * self.images_per_person}, but --batch_size is {self.batch_size}: expected the same"
                )
            return
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in OF_TRIPLET and value != setting.default:
                raise UserError(f"--{setting.name} {value} is a setting of the triplet loss, but --loss is {self.loss}")

    @classmethod
    def of_recipe(cls, recipe: str, **settings: Any) -> "TrainConfig":
        """Returns a run with these ``settings``; the others are those of ``recipe``, then the defaults.

        Raises:
          UserError: as for the constructor.
        """
        return cls(**{**RECIPES.get(recipe, {}), **settings, "recipe": recipe})

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.input_height, self.input_width

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.eval_every or max(1, self.epochs // 6)

    def run_name(self) -> str:
        """Returns the name of the run's folder, by which the same command finds it again.

        It holds the settings that decide on the weights and differ from the recipe's; of a path, the last part:
        ``market1501-han_large-hard_False-300epochs-seed0``.
        """
        told = {name: value for name, value in self.changes().items() if name not in (*NAMED, *NEUTRAL, "model_args")}
        told.update(self.model_args)
        data = (self.dataset + (f"-{self.split}" if self.split else "")).replace(",", "+")
        changed = "".join(f"-{name}_{_short(value)}" for name, value in told.items())
        return f"{data}-{self.model}{changed}-{self.epochs}epochs-seed{self.seed}"

    def changes(self) -> dict[str, Any]:
        """Returns the settings that differ from the recipe's, and the recipe unless it is the default; for JSON."""
        usual = {**DEFAULTS, **TrainConfig.of_recipe(self.recipe).to_dict(), "recipe": DEFAULTS["recipe"]}
        return {name: value for name, value in self.to_dict().items() if value != usual[name]}

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, ready for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "TrainConfig":
        """Returns the settings that :meth:`to_dict` gave.

        A missing setting gets its default, which is what older runs without that setting did.

        Raises:
          UserError: ``values`` holds an unknown setting or one of a wrong type; the error names ``where``.
        """
        unknown = sorted(set(values) - {setting.name for setting in fields(cls)})
        if unknown:
            raise UserError(f"{where}: setting {unknown[0]!r} is unknown, expected a run of this version")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: a setting of a wrong type ({error}), expected a run of this version") from error

    def check_resumable(self, saved: "TrainConfig", where: str) -> None:
        """Raises UserError if a run with the settings ``saved`` cannot go on with these."""
        for setting in fields(self):
            mine, theirs = getattr(self, setting.name), getattr(saved, setting.name)
            if mine != theirs and setting.name not in NEUTRAL:
                raise UserError(
                    f"{where} holds a run with --{flag_of(setting.name)} {theirs}, this command has {mine}; "
                    "give another --run, or the same flags to go on with that run"
                )


DEFAULTS: Mapping[str, Any] = MappingProxyType(TrainConfig().to_dict())
"""Setting -> its default, as in JSON."""


def flag_of(setting: str) -> str:
    """Returns the name of the flag of ``han_tf.train`` for a setting."""
    return "arch" if setting == "model" else setting


def parse_drops(text: str) -> tuple[float, ...]:
    """Returns the fractions in a value of ``--lr_drops``: ``3/4,9/10`` or ``0.75,0.9``.

    Raises:
      UserError: the value is not a list of fractions.
    """
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(",") if part.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--lr_drops {text!r}, expected fractions such as 3/4,9/10,19/20") from error


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments in the values of ``--model_args``: ``regions=6``, ``widths=[96,192,288]``.

    The part after ``=`` is read as JSON; if it is not JSON, it is a string.

    Raises:
      UserError: an argument has no name or is given twice.
    """
    arguments = {}
    for text in texts:
        name, found, value = text.partition("=")
        name = name.strip()
        if not found or not name.isidentifier() or name in arguments:
            raise UserError(
                f"--model_args {text!r}, expected NAME=VALUE, each name once; for example widths=[96,192,288]"
            )
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value.strip()
    return arguments


def _short(value: Any) -> str:
    """Returns a value for a run's name: six digits of a number, the parts of a list, the last part of a path."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(_short, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else Path(str(value)).name
