"""The command `trainer`: installed plugins, new ones, and the snapshots of a run. Stands above
`trainer_lm`, whose parser it asks for flags. Imports torch to verify or prune snapshots only.
"""
