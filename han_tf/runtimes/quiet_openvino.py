"""OpenVINO without its usage reports, which it and NNCF send on every import unless the user has declined.

Here a user is asked first: who has run ``opt_in_out --opt_in`` of the package openvino-telemetry reports, nobody else.
"""

import sys


def _reports_wanted() -> bool:
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

        return OptInChecker().check(enable_opt_in_dialog=False) == ConsentCheckResult.ACCEPTED
    except Exception:  # not installed, of another version, or there is no home folder to look in
        return False


if not _reports_wanted():
    # Both have a substitute that sends nothing for where the package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
from openvino import opset13  # noqa: E402

__all__ = ["openvino", "opset13"]
