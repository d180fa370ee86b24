"""What a run was made with, for its record."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("tensorflow", "numpy", "pillow", "scipy", "absl-py")


def describe() -> dict[str, Any]:
    """Returns command, git commit, Python and package versions and the machine, as JSON holds them."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
    }


def git_commit() -> str:
    """Returns the commit of the source tree, with ``+changes`` if files differ from it, or ``unknown``."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
