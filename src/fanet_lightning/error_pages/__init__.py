"""The browsable page of a run's errors: static files that open without a server."""
