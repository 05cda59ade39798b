"""`python -m scope_jax.sweep`."""

import sys

from scope_jax.sweep.runs import main

if __name__ == "__main__":
    sys.exit(main())
