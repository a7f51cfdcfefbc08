"""WIDER FACE's evaluation."""
