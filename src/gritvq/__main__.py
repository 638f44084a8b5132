"""``python -m gritvq``: the command line."""

import sys

from gritvq.cli import main

if __name__ == "__main__":
    sys.exit(main())
