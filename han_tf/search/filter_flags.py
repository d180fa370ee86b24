"""The flags that choose entries of a gallery, the same for all commands."""

from typing import Optional

from absl import flags

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.data.image_lists import parse_time
from han_tf.search.entries import Filters

NAMES = ("camera", "not_camera", "pid", "path", "after", "before")


def define_filters(values: command_line.Flags) -> None:
    """Adds the flags :data:`NAMES` under a heading of their own."""
    integer = flags.IntegerParser()
    values.group("filters")
    values.list_of("camera", [], "From these cameras only.", integer)
    values.list_of("not_camera", [], "Not from these cameras.", integer)
    values.list_of("pid", [], "Of these people only.", integer)
    values.repeated(
        "path", [], "This file only, or those in and below this folder; as in the gallery. Repeat it for several."
    )
    values.string("after", "", "Taken at this time or later.")
    values.string("before", "", "Taken before this time.")


def filters_of(values: command_line.Flags) -> Filters:
    """Returns the filters that the flags set.

    Raises:
      UsageError: a value is not valid, or no entry can pass.
    """
    after, before = _time(values.after, "after"), _time(values.before, "before")
    if None not in (after, before) and after >= before:
        raise command_line.UsageError(f"--after {values.after} is not earlier than --before {values.before}")
    if values.camera and {*values.camera} <= {*values.not_camera}:
        cameras = ",".join(map(str, values.camera))
        raise command_line.UsageError(f"--camera {cameras} are all in --not_camera, expected one that may pass")
    try:
        return Filters(
            tuple(values.camera), tuple(values.not_camera), after, before, tuple(values.pid), tuple(values.path)
        )
    except UserError as error:
        raise command_line.UsageError(str(error)) from error


def _time(text: str, flag: str) -> Optional[float]:
    try:
        return parse_time(text) if text else None
    except ValueError as error:
        raise command_line.UsageError(f"--{flag} {text}: {error}, expected seconds since 1970 or ISO 8601") from error
