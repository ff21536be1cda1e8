"""python -m gnnoffload"""

import sys

from gnnoffload.cli import main

if __name__ == "__main__":
    sys.exit(main())
