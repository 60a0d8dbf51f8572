"""Training runs: ``trainer`` runs one, ``step`` computes its gradients, ``update`` changes the weights."""
