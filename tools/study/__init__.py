"""The study that docs/study.md describes: its arms, the trainer, and the report."""

import core  # noqa: F401  (must come first: it configures TensorFlow)
