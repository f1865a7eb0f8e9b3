"""Measurements on disk, and programmes of several."""
