"""Random damage to bytes."""

import numpy as np

MEMORY_BYTES = 2**30
"""Most memory that reading a damaged input may add to its process."""


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Returns ``data`` with one to three damages: bytes changed, removed, repeated or replaced, also by ``other``'s."""
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
