"""Installed plugins on a command line: their options, and the callbacks that these ask for."""
