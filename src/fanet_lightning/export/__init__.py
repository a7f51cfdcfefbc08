"""Models as single files for other runtimes."""
