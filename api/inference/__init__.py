"""Models in the service: registry, queue, batcher, and checks of their vectors."""
