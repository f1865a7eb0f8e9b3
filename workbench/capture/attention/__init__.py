"""Attention statistics of a run, by tiles."""
