"""Runs put side by side, as tables."""
