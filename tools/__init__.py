"""Programs. Nothing but tests imports them."""

import core  # noqa: F401  (first: it prepares TensorFlow)
