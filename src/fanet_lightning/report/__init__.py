"""Figures, tables and pages of what was scored."""
