"""The flags of a command, and the text of its ``--help``: groups, with placeholders for the flags' values."""

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Optional

from absl import flags

GENERAL, REQUIRED = "general", "required"
"""Headings of the flags that all commands have, which come last, and of the mandatory flags, which come first."""


def _defining(define: Callable[..., Any]) -> Callable[..., None]:
    def method(self: "Flags", name: str, *arguments: Any, needs: str = "", excludes: str = "", **options: Any) -> None:
        define(name, *arguments, flag_values=self, **options)
        for other in filter(None, (needs, excludes)):
            self.check_pair(name, other, together=other == needs)

    return method


class Flags(flags.FlagValues):
    """The flags of a command, in groups for the help; ``--help``, ``--version`` and ``--quiet`` are among them.

    The first methods define a flag and take the arguments of ``absl.flags.DEFINE_...``: name, default, help, and the
    bounds of a number; ``enum`` takes its values before the help. Values of ``strings`` are separated by commas; those
    of ``repeated``, such as paths, may hold commas, and the flag is given again for each. ``needs`` and ``excludes``
    name another flag without which, or with which, the flag means nothing.

    Attributes:
      positional: the positional arguments of the parsed command line.
      old_names: old name of a flag -> its name.
      required: mandatory flag -> what the error says is expected.
      titles: flag -> the heading that it has in the help.
    """

    string = _defining(flags.DEFINE_string)
    integer = _defining(flags.DEFINE_integer)
    real = _defining(flags.DEFINE_float)
    boolean = _defining(flags.DEFINE_boolean)
    enum = _defining(flags.DEFINE_enum)
    strings = _defining(flags.DEFINE_list)
    repeated = _defining(flags.DEFINE_multi_string)
    alias = _defining(flags.DEFINE_alias)

    def __init__(self) -> None:
        super().__init__()
        self.__dict__.update(positional=[], old_names={}, required={}, titles={}, _title=GENERAL, _pairs=[], _values=[])
        self.boolean("help", False, "Show these flags and exit.", short_name="h")
        self.boolean("version", False, "Show the version and exit.")
        self.boolean("quiet", False, "Show no progress.")
        self.group("options")

    def group(self, title: str) -> None:
        """Puts the flags that are defined after this call under the heading ``title`` of the help."""
        for name in self:
            self.titles.setdefault(name, self._title)
        self.__dict__["_title"] = title

    def require(self, name: str, expected: str) -> None:
        """Makes the flag ``name`` mandatory; if it is missing, the error says what is ``expected``."""
        self.required[name] = expected

    def old_name(self, old: str, new: str) -> None:
        """Keeps ``--old`` as another name of the flag ``new``; using it prints a note with the new name."""
        self.alias(old, new)
        self.old_names[old] = new

    def define_run(self, what: str = "A run's folder", newest: str = "the newest run that fits") -> None:
        """Adds the flags ``--model``, also called ``--run``, and ``--runs_dir``, of a command that uses a network.

        Args:
          what: what ``--model`` may be, beside a network of the package.
          newest: what is taken if it is empty.
        """
        told = f"{what}, or the name of a network that comes with the package; {newest} if empty."
        self.string("model", "", told)
        self.alias("run", "model")
        self.string("runs_dir", "runs", "Where runs are kept.")

    def define_white_level(self, otherwise: str = "what their format says") -> None:
        """Adds ``--white_level``; 0 stands for ``otherwise``, see :class:`han_tf.data.depth.Depth`."""
        self.real(
            "white_level",
            0,
            f"Value that is white in grey images of more than 8 bits, such as 4095; {otherwise} if 0.",
            0,
        )

    def list_of(
        self,
        name: str,
        default: Sequence[Any],
        help: str,
        parser: Optional[flags.ArgumentParser] = None,
        separator: str = ",",
    ) -> None:
        """Adds a flag for a list of values, separated by commas; giving the flag again adds to the list.

        Args:
          name, default, help: of the flag.
          parser: of one value; values are strings if None.
          separator: regular expression that separates two values.
        """
        flag = _ListFlag(parser or flags.ArgumentParser(), flags.ArgumentSerializer(), name, list(default), help)
        flag.help, flag.separator = help, separator
        flags.DEFINE_flag(flag, flag_values=self)

    def check_pair(self, flag: str, other: str, together: bool = True, reason: str = "", wanted: Any = None) -> None:
        """Makes ``flag`` need the flag ``other`` or, unless ``together``, exclude it.

        Args:
          flag, other: names; a flag counts as given if its value is not the default.
          together: whether ``flag`` needs ``other``; if False, it excludes it.
          reason: the line of error; made from the names if empty.
          wanted: the only value of ``other`` that counts as given; any but the default if None.
        """
        reason = reason or f"--{flag} means nothing {'without' if together else 'with'} --{other}"
        self._pairs.append((flag, other, together, reason, wanted))

    def check_value(self, name: str, is_valid: Callable[[Any], bool], expected: str) -> None:
        """Makes ``expected`` the error if ``is_valid`` returns False for the value of the flag ``name``."""
        self._values.append((name, is_valid, expected))

    def check_all(self) -> None:
        """Raises ``absl.flags.Error`` if a flag is missing or wrong, or two exclude each other."""
        for name, is_valid, expected in self._values:
            if not is_valid(self[name].value):
                raise flags.Error(f"flag --{name}={self[name].value}: {expected}")
        for flag, other, together, reason, wanted in self._pairs:
            has_other = self[other].value != self[other].default if wanted is None else self[other].value == wanted
            if self[flag].value != self[flag].default and has_other != together:
                raise flags.Error(reason)
        for name, expected in self.required.items():
            if not self[name].value:
                raise flags.Error(f"--{name} is missing, expected {expected}")
        for name, value in self.flag_values_dict().items():
            # NaN passes the checks of lower and upper bounds.
            if isinstance(value, float) and not math.isfinite(value):
                raise flags.Error(f"flag --{name}={value}: expected a finite number")

    def help_text(self, description: str) -> str:
        """Returns the text of ``--help``, with ``description`` before the flags; mandatory flags come first."""
        self.group("")
        parser = argparse.ArgumentParser(
            usage=argparse.SUPPRESS,
            description=description.replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        titles = {**self.titles, **dict.fromkeys(self.required, REQUIRED)}
        order = [title for title in dict.fromkeys((REQUIRED, *titles.values())) if title != GENERAL]
        sections = {title: parser.add_argument_group(title) for title in (*order, GENERAL)}
        for name in self:
            flag = self[name]
            if name != flag.name or name in self.old_names:  # short names, old names
                continue
            negatable = flag.boolean and not name.startswith(("help", "version", "no"))
            names = [f"--[no]{name}" if negatable else f"--{name}"]
            names += [f"-{flag.short_name}"] * bool(flag.short_name)
            kind: dict[str, Any] = {"action": "store_true"} if flag.boolean else {"metavar": _value_name(flag)}
            sections[titles[name]].add_argument(*names, **kind, help=_described(flag).replace("%", "%%"))
        sections[GENERAL].add_argument(
            "--flagfile",
            metavar="FILE",
            help="Config file: a flag per line, such as --seed=1; # begins a comment. Later flags of the command line "
            "win.",
        )
        return parser.format_help().strip()


class _ListFlag(flags.MultiFlag):
    """See :meth:`Flags.list_of`."""

    separator = ","

    def _parse(self, arguments: Any) -> list[Any]:
        if isinstance(arguments, str):
            arguments = [part.strip() for part in re.split(self.separator, arguments)]
        return super()._parse(arguments)


def _value_name(flag: flags.Flag) -> str:
    """Returns the placeholder for a flag's value."""
    kinds = {flags.IntegerParser: "N", flags.FloatParser: "X"}
    name = "DIR" if flag.name.endswith("_dir") else flag.name.upper()
    name = next((short for parser, short in kinds.items() if isinstance(flag.parser, parser)), name)
    return f"{name},..." if isinstance(flag, _ListFlag) or isinstance(flag.parser, flags.ListParser) else name


def _described(flag: flags.Flag) -> str:
    """Returns a flag's help with its choices and its default."""
    choices = [name for name in getattr(flag.parser, "enum_values", ()) if name]
    default = flag.default
    if isinstance(default, (list, tuple)):
        default = "all of them" if len(default) > 1 and list(default) == choices else ",".join(map(str, default))
    elif isinstance(default, str) and os.path.isabs(default):
        default = os.path.relpath(default)
    facts = [f"one of {', '.join(choices)}"] * bool(choices)
    hidden = default is None or default is False or default == ""
    facts += [f"default: {str(default).lower() if flag.boolean else default}"] * (not hidden)
    told = flag.help.partition(">: ")[2] if isinstance(flag, flags.EnumFlag) else flag.help  # without the choices
    told = told.partition(";\n    repeat this option")[0]  # what absl adds
    return told + (f" ({'; '.join(facts)})" if facts else "")
