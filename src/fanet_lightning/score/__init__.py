"""Scores of predictions against ground truth, for every benchmark. No torch."""
