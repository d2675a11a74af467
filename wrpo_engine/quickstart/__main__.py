"""`python -m wrpo_engine.quickstart --out DIR`."""

import sys

from wrpo_engine.quickstart.assets import main

if __name__ == "__main__":
    sys.exit(main())
