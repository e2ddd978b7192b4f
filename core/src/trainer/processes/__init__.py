"""The processes that train one model together, and what each of them has of its own: its device,
its random numbers, its signals.
"""
