"""What an object implements of the hooks, and the calls of those who do, in order."""
