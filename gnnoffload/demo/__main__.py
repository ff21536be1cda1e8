"""python -m gnnoffload.demo"""

import sys

from gnnoffload.demo import main

if __name__ == "__main__":
    sys.exit(main())
