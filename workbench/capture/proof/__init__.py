"""Proofs of a capture: the same pass seen otherwise, before, during and after recording."""
