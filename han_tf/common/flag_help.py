"""The text of a command's ``--help``: its flags in groups, with placeholders for their values."""

import argparse
import os
from collections.abc import Collection, Container, Mapping
from typing import Any

from absl import flags

GENERAL, REQUIRED = "general", "required"
"""Headings of the flags that all commands have, which come last, and of the mandatory flags, which come first."""


def help_text(
    values: flags.FlagValues,
    description: str,
    titles: Mapping[str, str],
    required: Collection[str],
    left_out: Container[str],
) -> str:
    """Returns the text of ``--help``.

    Args:
      values: the command's flags.
      description: the text before the flags.
      titles: name of each flag -> its heading.
      required: names of mandatory flags, which come first.
      left_out: names of flags that are not shown.
    """
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=description.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    titles = {**titles, **dict.fromkeys(required, REQUIRED)}
    order = [title for title in dict.fromkeys((REQUIRED, *titles.values())) if title != GENERAL]
    sections = {title: parser.add_argument_group(title) for title in (*order, GENERAL)}
    for name in values:
        flag = values[name]
        if name != flag.name or name in left_out:  # short names, old names
            continue
        negatable = flag.boolean and not name.startswith(("help", "version", "no"))
        names = [f"--[no]{name}" if negatable else f"--{name}"]
        names += [f"-{flag.short_name}"] * bool(flag.short_name)
        kind: dict[str, Any] = {"action": "store_true"} if flag.boolean else {"metavar": _value_name(flag)}
        sections[titles[name]].add_argument(*names, **kind, help=_described(flag).replace("%", "%%"))
    sections[GENERAL].add_argument(
        "--flagfile",
        metavar="FILE",
        help="Config file: a flag per line, such as --seed=1; # begins a comment. Later flags of the command line win.",
    )
    return parser.format_help().strip()


def _value_name(flag: flags.Flag) -> str:
    """Returns the placeholder for a flag's value."""
    kinds = {flags.IntegerParser: "N", flags.FloatParser: "X"}
    name = "DIR" if flag.name.endswith("_dir") else flag.name.upper()
    name = next((short for parser, short in kinds.items() if isinstance(flag.parser, parser)), name)
    return f"{name},..." if isinstance(flag, flags.MultiFlag) or isinstance(flag.parser, flags.ListParser) else name


def _described(flag: flags.Flag) -> str:
    """Returns a flag's help with its choices and its default."""
    choices = [name for name in getattr(flag.parser, "enum_values", ()) if name]
    default = flag.default
    if isinstance(default, (list, tuple)):
        default = "all of them" if len(default) > 1 and list(default) == choices else ",".join(map(str, default))
    elif isinstance(default, str) and os.path.isabs(default):
        default = os.path.relpath(default)
    facts = [f"one of {', '.join(choices)}"] * bool(choices)
    facts += [f"default: {str(default).lower() if flag.boolean else default}"] * (default not in (None, "", False))
    told = flag.help.partition(">: ")[2] if isinstance(flag, flags.EnumFlag) else flag.help  # without the choices
    return told + (f" ({'; '.join(facts)})" if facts else "")
