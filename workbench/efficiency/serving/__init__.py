"""Served endpoints under load."""
