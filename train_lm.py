"""`python train_lm.py` is the command `train-lm`."""

import sys

from trainer_lm.cli import main

if __name__ == "__main__":
    sys.exit(main())
