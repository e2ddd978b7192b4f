"""Loaders and batches: an order that depends on the epoch, a share for each process."""
