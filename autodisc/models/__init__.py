"""Models: loading, layouts (where each family keeps heads and neurons), pruned checkpoints."""
