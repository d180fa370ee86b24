"""Command, commit, packages and machine that a run was made with."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from han_tf.common.processes import usable_cores

PACKAGES = ("tensorflow", "numpy", "pillow", "scipy", "absl-py")

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
"""Switches oneDNN's kernels in TensorFlow on (1) and off (0); see :mod:`han_tf`."""

INSTRUCTION_SETS = (
    *("sse4_2", "avx", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),  # x86 matrix units
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),  # ARM
)
"""Instruction sets that speed up matrix products, by Linux' names."""

BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Those with which oneDNN computes faster in bfloat16 than in float32."""

SOURCES = (":/han_tf/*.py", ":/experiments/*.py")
"""Files that results depend on, as git patterns."""


def describe() -> dict[str, Any]:
    """Returns command, git commit, Python and package versions and the machine, ready for JSON."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": machine(),
    }


def _version(package: str) -> str:
    """Returns a package's version; that of its module where another package, such as tensorflow-cpu, brings it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", "unknown")


def machine() -> dict[str, Any]:
    """Returns processor, instruction sets, cores, memory and the switch of oneDNN of this machine.

    The cores are those that this process may use. Memory is in GiB, None if unknown. The switch is None where
    TensorFlow chooses.
    """
    processor, instruction_sets = _processor()
    memory = None
    if hasattr(os, "sysconf"):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "processor": processor,
        "instruction_sets": instruction_sets,
        "cores": usable_cores(),
        "memory_gib": memory,
        ONEDNN: os.environ.get(ONEDNN),
    }


def arithmetic() -> str:
    """Returns this machine's instruction sets and the switch of oneDNN, in one line."""
    here = machine()
    switch = "not set" if here[ONEDNN] is None else here[ONEDNN]
    return f"{' '.join(here['instruction_sets']) or 'instruction sets unknown'}; {ONEDNN}: {switch}"


def faster_in_bfloat16() -> bool:
    """Returns whether TensorFlow trains faster in bfloat16 than in float32 on this processor, with oneDNN."""
    here = machine()
    return here[ONEDNN] != "0" and not set(BFLOAT16).isdisjoint(here["instruction_sets"])


def _processor() -> tuple[str, list[str]]:
    """Returns the processor's name and instruction sets; without /proc/cpuinfo, the sets that NumPy names."""
    name, told = platform.processor() or platform.machine(), {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                key, _, value = line.partition(":")
                told.setdefault(key.strip().lower(), value.strip())
    except OSError:
        found = np.show_config(mode="dicts").get("SIMD Extensions", {})  # type: ignore  # NumPy says it returns nothing
        return name, [extension.lower() for kind in ("baseline", "found") for extension in found.get(kind, [])]
    present = set(told.get("flags", told.get("features", "")).split())
    return told.get("model name", name), [extension for extension in INSTRUCTION_SETS if extension in present]


def git_commit() -> str:
    """Returns the last commit of the source code, with ``+changes`` if the code differs now, or ``unknown``."""
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
