"""The code that the notebooks share. It configures TensorFlow, so import it before Keras."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADLESS = "HEADLESS" in os.environ  # set by tools/run.py, where nobody watches a progress bar

# Notebooks show their figures, whatever MPLBACKEND says in the shell.
if "ipykernel" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
    shell.run_line_magic("matplotlib", "inline")
# This ignores ~/.keras/keras.json: only KERAS_BACKEND chooses another backend.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Take GPU memory only as needed, so that one notebook does not claim all of it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the same in JAX
# oneDNN's convolutions make a training step 1.9 times faster on a CPU without AVX-512, where
# TensorFlow leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Warnings stay visible: one of them says that a CUDA library is missing.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
if os.cpu_count() == 2:  # two operations at a time, one core each: see layers.Conv2D
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
