"""Figures on paper."""
