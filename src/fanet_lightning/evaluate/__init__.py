"""Detections on a benchmark's images, scored."""
