"""The application `train-lm`: text, tokens and a small GPT for the trainer to train.

Importing this package, and its `options`, imports neither torch nor numpy; the other rooms do.
"""
