"""Timed runs of models, in rounds."""
