"""A local page to try a detector on."""
