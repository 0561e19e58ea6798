"""Command-line programs; nothing in core/ or in the notebooks imports them."""

import core  # noqa: F401  (must come first: it configures TensorFlow)
