"""Collections in the service: open ones, their writers, and the jobs that build them."""
