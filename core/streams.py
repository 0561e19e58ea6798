"""Random streams that never collide: each purpose has its own."""

import zlib

import numpy as np


def random_stream(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on its arguments alone, such as ("order", seed, epoch).

    NumPy pads seeds with zeros, so (seed, epoch) and (seed, epoch, 0) would be one stream. Here a
    checksum of the purpose comes first, so two purposes never share a stream. One purpose must
    always be given the same count of numbers.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), *numbers))
