"""`python -m scope_jax.prospect`."""

from scope_jax.prospect import command
from scope_jax.prospect.command import main

__doc__ = command.__doc__  # what --help shows

if __name__ == "__main__":
    main()
