"""What surrounds every request: keys, limits, errors, bodies, middleware and draining."""
