"`python -m fmtut` is the `fmtut` command."

import sys

from fmtut.cli import main

if __name__ == "__main__":
    sys.exit(main())
