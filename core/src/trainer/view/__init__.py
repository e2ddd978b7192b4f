"""What callbacks see of a run."""
