"""`python -m memwarden` is `memwarden`."""

import sys

from memwarden.cli import main

if __name__ == "__main__":
    sys.exit(main())
