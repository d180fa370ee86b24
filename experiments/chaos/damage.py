"""What is done to valid bytes."""

import numpy as np

MEMORY_BYTES = 2**30
"""Reading damaged ones may take beyond what its process had at first."""


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flips bytes, cuts off, cuts out, repeats, overwrites with zeros or ones, or takes over a piece of ``other``."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(changed) + 1)), int(2 ** rng.uniform(0, 10))
        step = rng.choice(["flip", "flip", "head", "cut", "remove", "repeat", "fill", "splice"])
        if step in ("flip", "head"):
            most = min(len(changed), 256) if step == "head" else len(changed)
            for place in rng.integers(most, size=min(most, int(rng.integers(1, 9)))):
                changed[place] = rng.integers(256)
        elif step == "cut":
            del changed[at:]
        elif step == "remove":
            del changed[at : at + length]
        elif step == "repeat":
            changed[at:at] = changed[at : at + length]
        elif step == "fill":
            changed[at : at + length] = bytes([rng.choice([0, 255])]) * len(changed[at : at + length])
        else:
            there = int(rng.integers(len(other) + 1))
            changed[at : at + length] = other[there : there + length]
    return bytes(changed)
