"""What a run was made with, for its record."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from han_tf.cores import usable_cores

PACKAGES = ("tensorflow", "numpy", "pillow", "scipy", "absl-py")

SOURCES = (":/han_tf/*.py", ":/experiments/*.py")
"""What results depend on, as git names it: documents, tests and the results themselves may change."""


def describe() -> dict[str, Any]:
    """Returns command, git commit, Python and package versions and the machine, as JSON holds them."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Returns what can be told of this machine: processor, cores that this process may use, memory in GiB."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            named = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
        processor = named[0] if named else processor
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": processor, "cores": usable_cores(), "memory_gib": round(memory, 1)}


def git_commit() -> str:
    """Returns the last commit that changed the source code, with ``+changes`` if it differs now, or ``unknown``."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("log", "-1", "--format=%H", "--", *SOURCES)
        if not commit:
            return "unknown"
        return commit + ("+changes" if git("status", "--porcelain", "-uno", "--", *SOURCES) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
