"""Intervals, nulls and designs over documents and clusters: arrays in, arrays out."""
