"""The settings of a training run, as written into its folder."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Optional
from zlib import crc32

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

``strategy`` and ``xla`` change the order of sums, and so the last digits, as another machine does. ``precision`` and
``sync_batch_norm`` are not neutral: they change the arithmetic and the statistics of batch norm.
"""

OF_DATA = ("num_classes", "num_images", "replicas", "fingerprints")
"""Entries of a run's config.json that describe its data and devices and are no settings."""

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
"""Types that a network may compute in; its weights are always float32.

With a mixed type, convolutions and their batch norm compute in the 16-bit type, region positions, features and losses
in float32. With float16 the objective is scaled.
"""

STRATEGIES = ("one_device", "mirrored", "multi_worker")
"""Which devices share the training, see :mod:`han_tf.training.devices`."""

CROSS_ENTROPY, TRIPLET = "cross_entropy", "triplet"
LOSSES = (CROSS_ENTROPY, TRIPLET, f"{CROSS_ENTROPY}+{TRIPLET}")
"""Objectives (Table 11): the loss of each branch, or the sum of its two losses."""

MINING = ("hard", "semihard")
"""How the triplet loss chooses the triplets of a batch, see :class:`han_tf.training.losses.TripletLoss`."""

OF_TRIPLET = ("mining", "margin", "people", "images_per_person")
"""Settings that only the triplet loss uses."""

OF_NETWORK = ("num_classes", "input_size", "name", "condensed")
"""Arguments of a network that ``--model_args`` must not hold: other settings and the data determine them."""

NAMED = ("dataset", "split", "model", "epochs", "seed")
"""Settings with a fixed place in a run's name."""

LONGEST_NAME = 240
"""Largest length of a run's name in bytes; file systems allow 255 for a folder."""

DATA, NETWORK, WEIGHTS, TRAINING = "data", "network", "weights to start from", "training"
AUGMENTATION, OPTIMISER, COMPUTATION = "augmentation", "optimiser", "computation"
EVALUATIONS = "checkpoints and evaluations"
TITLES = (DATA, NETWORK, WEIGHTS, TRAINING, AUGMENTATION, OPTIMISER, COMPUTATION, EVALUATIONS)
"""Headings of the settings in the help of ``han_tf.train``, in their order."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "strong": {
        "label_smoothing": 0.1,
        "horizontal_flip": True,
        "random_translation": True,
        "lr_drops": (3 / 4, 9 / 10, 19 / 20),
        "weight_decay": 2e-3,
    },
}
"""Recipe -> the settings that it changes.

``paper`` changes none. ``strong`` has what raised the accuracy of HAN Small on Market-1501 in 24 epochs: late drops of
the learning rate (after the first drop, a network fits its training images and learns little more), augmentation, label
smoothing, and four times the paper's weight decay, whose effect builds up over 1/(learning rate · λ) steps: 165 epochs
of that set at the paper's values. experiments/RESULTS.md has the accuracies of both recipes, of the parts of ``strong``
one after the other ("What single settings do"), and of additions to it, among them the triplet loss, which needs a
lower learning rate.
"""


def _setting(
    title: str,
    default: Any,
    help: str,
    lower: Optional[float] = None,
    upper: Optional[float] = None,
    choices: Collection[str] = (),
    factory: Any = MISSING,
) -> Any:
    """Returns a field; its metadata are the heading, help text, bounds and choices of its flag of ``han_tf.train``."""
    metadata = {"title": title, "help": help, "lower": lower, "upper": upper, "choices": choices}
    return field(default=default, default_factory=factory, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (Sec. 4, Implementation Details), but for ``localisation_lr``.

    The texts below describe the settings, and are the help of the flags. ``recipe`` only names a recipe;
    :meth:`of_recipe` applies it. ``model_args`` are arguments of the network's constructor, by name. ``lr_drops`` are
    fractions, ascending in (0, 1).

    Raises:
      UserError: there is no such recipe, network, loss, mining, precision or strategy, a number is out of range, or
        settings contradict each other.
    """

    dataset: str = _setting(
        DATA,
        "synthetic",
        f"Data set: {', '.join(DATASETS)}; or several, separated by commas, whose people and cameras stay distinct.",
    )
    split: str = _setting(
        DATA,
        "",
        "Protocol variant; the data set's default if empty. For several data sets, one each, separated by commas.",
    )
    data_dir: str = _setting(
        DATA, "", "Data folder; datasets/NAME if empty. For several data sets, one each, separated by commas."
    )
    recipe: str = _setting(
        TRAINING,
        "paper",
        "Settings to start from: the paper's, or settings of higher accuracy; explicit flags override them.",
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
    model_args: Mapping[str, Any] = _setting(
        NETWORK, MISSING, "Other arguments of the network, for example regions=6,widths=[96,192,288].", factory=dict
    )
    weights: str = _setting(
        WEIGHTS,
        "",
        "ImageNet weights (.h5) that MobileNet or ResNet50 starts from; or market1501 or synthetic, which a HAN of the "
        "package was trained on; random if empty.",
    )
    init_from: str = _setting(
        WEIGHTS,
        "",
        "Fine-tuning: folder of a run, or name of a network that comes with the package, from which this network "
        "starts, all but the classifiers. The input size may differ.",
    )
    init_classifiers: bool = _setting(
        WEIGHTS, False, "Also take the classifiers from --init_from; the training images must be the same."
    )
    freeze_epochs: int = _setting(
        WEIGHTS, 0, "Number of first epochs in which only the classifiers are trained, with --init_from.", 0
    )
    epochs: int = _setting(TRAINING, 300, "Passes over the training images.", 1)
    batch_size: int = _setting(TRAINING, 32, "Images per step.", 2)
    loss: str = _setting(
        TRAINING, CROSS_ENTROPY, "Loss of each branch (Table 11), summed over the branches.", choices=LOSSES
    )
    mining: str = _setting(TRAINING, "hard", "Which triplets of a batch the triplet loss uses.", choices=MINING)
    margin: float = _setting(TRAINING, 0.3, "Margin of the triplet loss, a distance between features of unit norm.", 0)
    people: int = _setting(
        TRAINING, 8, "P, people per batch with the triplet loss; P times --images_per_person must be --batch_size.", 2
    )
    images_per_person: int = _setting(TRAINING, 4, "K, images of each of these people.", 2)
    label_smoothing: float = _setting(
        TRAINING, 0.0, "ε of the cross-entropy, below 1: 1 - ε of the target is the person's, ε is shared by all.", 0
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
    depthwise_decay: bool = _setting(
        OPTIMISER, True, "Weight decay acts on depthwise kernels, too; Howard et al. (2017) spare them."
    )
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
        COMPUTATION, True, "If several devices share a batch, batch norm uses the whole batch, not each device's part."
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
        EVALUATIONS,
        0,
        "Epochs between evaluations; 0 for at most six over the run. The last epoch is always evaluated.",
        0,
    )
    keep_checkpoints: int = _setting(EVALUATIONS, 2, "Newest checkpoints kept.", 1)
    panel_images: int = _setting(EVALUATIONS, 8, "Images whose attention TensorBoard shows.", 0)
    cache_mb: int = _setting(
        DATA, 4096, "Largest decoded training set kept in memory, MiB; a larger one goes to a file.", 0
    )
    skip_bad_images: bool = _setting(DATA, False, "Leave out unreadable images instead of stopping.")

    def __post_init__(self):
        if isinstance(self.lr_drops, list):  # JSON has only lists
            object.__setattr__(self, "lr_drops", tuple(self.lr_drops))
        if _is_number(self.label_smoothing) and not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label_smoothing {self.label_smoothing}, expected at least 0 and less than 1")
        for setting in fields(self):
            _check_value(setting, getattr(self, setting.name))
        drops = (0, *self.lr_drops, 1)
        if not all(earlier < later for earlier, later in pairwise(drops)):
            shown = ",".join(map(_short, self.lr_drops))
            raise UserError(f"--lr_drops {shown}, expected ascending parts of the epochs, between 0 and 1")
        for name in ("init_classifiers", "freeze_epochs"):
            if getattr(self, name) and not self.init_from:
                raise UserError(f"--{name} means nothing without --init_from")
        if self.init_from and self.weights:
            raise UserError(f"--init_from {self.init_from} and --weights {self.weights}, expected one of them")
        if self.freeze_epochs and (self.freeze_epochs >= self.epochs or CROSS_ENTROPY not in self.loss):
            raise UserError(
                f"--freeze_epochs {self.freeze_epochs} with --epochs {self.epochs} and --loss {self.loss}, expected "
                "fewer than the epochs, and a loss with classifiers"
            )
        for name in self.model_args:
            if name in (*OF_NETWORK, *(setting.name for setting in fields(self))):
                raise UserError(
                    f"--model_args {name}=..., expected an argument of the network that has no flag of its own"
                )
        if self.label_smoothing and CROSS_ENTROPY not in self.loss:
            raise UserError(f"--label_smoothing {self.label_smoothing} means nothing with --loss {self.loss}")
        if TRIPLET in self.loss:
            if self.people * self.images_per_person != self.batch_size:
                raise UserError(
                    f"--people {self.people} times --images_per_person {self.images_per_person} is "
                    f"{self.people * self.images_per_person}, but --batch_size is {self.batch_size}: expected the same"
                )
            return
        for name in OF_TRIPLET:
            value = getattr(self, name)
            if value != getattr(TrainConfig, name):
                raise UserError(f"--{name} {value} is a setting of the triplet loss, but --loss is {self.loss}")

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
        return self.eval_every or -(-self.epochs // 6)

    def run_name(self) -> str:
        """Returns the name of the run's folder, by which the same command finds it again.

        It holds the settings that decide on the weights and differ from the recipe's; of a path, the last part:
        ``market1501-han_large-hard_False-300epochs-seed0``. If it would be longer than :data:`LONGEST_NAME`, a checksum
        stands in place of its end.
        """
        told = {name: value for name, value in self.changes().items() if name not in (*NAMED, *NEUTRAL, "model_args")}
        told.update(self.model_args)
        data = (self.dataset + (f"-{self.split}" if self.split else "")).replace(",", "+")
        changed = "".join(f"-{name}_{_short(value)}" for name, value in told.items())
        name = f"{data}-{self.model}{changed}-{self.epochs}epochs-seed{self.seed}"
        if len(name.encode()) > LONGEST_NAME:
            digits = f"-{crc32(name.encode()):08x}"
            name = name.encode()[: LONGEST_NAME - len(digits)].decode(errors="ignore") + digits
        return name

    def changes(self) -> dict[str, Any]:
        """Returns the settings that differ from the recipe's, and the recipe unless it is the default; for JSON."""
        usual = {**DEFAULTS, **TrainConfig.of_recipe(self.recipe).to_dict(), "recipe": DEFAULTS["recipe"]}
        return {name: value for name, value in self.to_dict().items() if value != usual[name]}

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, ready for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "TrainConfig":
        """Returns the settings in the result of :meth:`to_dict`.

        A missing setting gets its default: runs of versions without the setting did what the default does.

        Raises:
          UserError: ``values`` holds an unknown setting or a wrong value; the error names ``where``.
        """
        unknown = sorted(set(values) - {setting.name for setting in fields(cls)})
        if unknown:
            raise UserError(f"{where}: setting {unknown[0]!r} is unknown, expected a run of this version")
        try:
            return cls(**values)
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"{where}: a setting is wrong ({error}), expected a run of this version") from error

    def check_resumable(self, saved: "TrainConfig", where: str) -> None:
        """Raises UserError if a run with the settings ``saved``, in the folder ``where``, cannot resume with these."""
        for setting in fields(self):
            mine, theirs = getattr(self, setting.name), getattr(saved, setting.name)
            if mine != theirs and setting.name not in NEUTRAL:
                raise UserError(
                    f"{where} holds a run with --{flag_of(setting.name)} {theirs}, this command has {mine}; "
                    "give another --run, or the same flags to resume that run"
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("a string", lambda value: isinstance(value, str)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", _is_number),
    tuple[float, ...]: ("numbers", lambda value: isinstance(value, tuple) and all(map(_is_number, value))),
    Mapping[str, Any]: ("arguments by name", lambda value: isinstance(value, Mapping)),
}
"""Type of a setting -> what is expected, and whether a value is that."""


def _check_value(setting: Field, value: Any) -> None:
    """Raises UserError if the value is of another type, none of the setting's choices, or beyond its bounds."""
    flag, choices = f"--{flag_of(setting.name)}", setting.metadata["choices"]
    expected, fits = _KINDS[setting.type]
    if not fits(value):
        raise UserError(f"{flag} {value!r}, expected {expected}")
    if choices and value not in choices:
        raise UserError(f"{flag} {value!r}, expected one of {', '.join(choices)}")
    lower, upper = setting.metadata["lower"], setting.metadata["upper"]
    if lower is not None and not lower <= value <= (math.inf if upper is None else upper):
        raise UserError(f"{flag} {value}, expected {f'at least {lower}' if upper is None else f'{lower} to {upper}'}")


def flag_of(setting: str) -> str:
    """Returns the name of the flag of ``han_tf.train`` for a setting."""
    return "arch" if setting == "model" else setting


def parse_drops(text: str) -> tuple[float, ...]:
    """Returns the fractions in a value of ``--lr_drops``, such as ``3/4,9/10`` or ``0.75,0.9``.

    Raises:
      UserError: the value is not a list of fractions.
    """
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(",") if part.strip())
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"--lr_drops {text!r}, expected fractions such as 3/4,9/10,19/20") from error


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments in the values of ``--model_args``, such as ``regions=6`` and ``widths=[96,192,288]``.

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
    return f"{value:.6g}" if isinstance(value, float) else "".join(map(_readable, Path(str(value)).name))


def _readable(character: str) -> str:
    """Returns the character, or ``_`` for one that is better not in a folder's name."""
    return character if character.isprintable() and character not in "[]\\" else "_"


DEFAULTS: Mapping[str, Any] = TrainConfig().to_dict()
"""Setting -> its default, as in JSON."""
