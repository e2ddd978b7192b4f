"""The course of a run, from its start to its end, whatever loop it is that drives it."""
