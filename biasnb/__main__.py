"""`python -m biasnb` is the command `biasnb`."""

import sys

from .suite.commands import main

if __name__ == "__main__":
    sys.exit(main())
