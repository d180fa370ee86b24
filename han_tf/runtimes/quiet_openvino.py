"""OpenVINO without usage reports, unless the user has run ``opt_in_out --opt_in`` of openvino-telemetry.

By default OpenVINO and NNCF send a report on every import unless the user has declined.
"""

import sys


def _reports_wanted() -> bool:
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

        return OptInChecker().check(enable_opt_in_dialog=False) == ConsentCheckResult.ACCEPTED
    except Exception:  # not installed, of another version, or no home folder
        return False


if not _reports_wanted():
    # Without this package, both use a substitute that sends nothing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
from openvino import opset13  # noqa: E402

__all__ = ["openvino", "opset13"]
