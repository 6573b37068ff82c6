"""Response bodies as bytes, written straight from arrays."""
