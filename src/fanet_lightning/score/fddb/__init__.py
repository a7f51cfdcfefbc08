"""FDDB's evaluation."""
