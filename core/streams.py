"""Random streams: each purpose has its own, independent of the others."""

import zlib

import numpy as np


def random_stream(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a random generator that depends only on its arguments, such as ("order", seed, epoch).

    A checksum of the purpose is part of the seed, so that different purposes get different streams.
    Calls with the same purpose must always give equally many `numbers`: NumPy pads seeds with
    zeros, so (seed, epoch) and (seed, epoch, 0) are the same stream.
    """
    return np.random.default_rng((zlib.crc32(purpose.encode()), *numbers))
