"""Measurements of kdrun against other loops, and of how it grows; run from a checkout, never installed."""
