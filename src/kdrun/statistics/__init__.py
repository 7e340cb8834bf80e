"""Scores of predictions, and their summary over seeds; numpy only."""
