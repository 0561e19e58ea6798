"""The study: what GAN images are good for, one use a row, under the same rules. docs/study.md says what it asks.

plan.py is the list of runs and holds every number; each use is a file of its own with a function `prepare`; the rest is shared.
"""

import os

# float32 is float32 on a GPU too, not TF32: read when CUDA and JAX are loaded
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
