"""The study of docs/study.md: its arms, the trainer, and the report."""

import core  # noqa: F401  (first: it prepares TensorFlow)
