"""Faces in images and videos."""
