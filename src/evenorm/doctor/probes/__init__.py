"""Experiments that tell a fault from a habit; each runs once per examination."""
