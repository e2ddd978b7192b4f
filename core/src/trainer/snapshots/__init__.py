"""What a run keeps on the disk, and what it finds there again."""
