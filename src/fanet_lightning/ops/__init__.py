"""Boxes, anchors, matching, losses, postprocessing, drawing."""
