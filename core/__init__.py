"""What the notebooks stand on. It prepares TensorFlow, so import it before Keras."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADLESS = "HEADLESS" in os.environ  # set by tools/run.py, where nobody watches a progress bar

# oneDNN's convolutions make a training step 1.9 times faster on a CPU without AVX-512, where
# TensorFlow leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Warnings stay visible: one of them says that a CUDA library is missing.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
if os.cpu_count() == 2:  # two operations at a time, one core each: see layers.Conv2D
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
