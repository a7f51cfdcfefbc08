"""What every command shares: configuration, errors, files, provenance, devices."""
