"""The study: what GAN images are good for, one use a row, under the same rules. docs/study.md says what it asks.

plan.py is the list of runs and holds every number; each use is a file of its own with a function `prepare`; the rest is shared.
"""
