"""`python -m scope_jax.fit`."""

from scope_jax.fit import command
from scope_jax.fit.command import main

__doc__ = command.__doc__  # what --help shows

if __name__ == "__main__":
    main()
