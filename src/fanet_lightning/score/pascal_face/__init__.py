"""PASCAL face and AFW's evaluation."""
