"""Checkpoints on disk: every tensor accounted for, dequantized and compared with what was loaded."""
