"""`python -m scope_jax.fit`."""

from scope_jax.fit.command import main

if __name__ == "__main__":
    main()
