"""Recordings: their format, what reads and writes them, corpora, and traces of other tools."""
