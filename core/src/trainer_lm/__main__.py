"""`python -m trainer_lm`, and so `torchrun -m trainer_lm`: the command `train-lm`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
