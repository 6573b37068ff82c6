"""HTTP around the handlers: routing, keys, limits, errors, bodies, middleware and draining."""
