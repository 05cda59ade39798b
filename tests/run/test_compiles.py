"""Compilations are counted one by one, from the call on."""

import jax
import jax.numpy as jnp

from scope_jax.run.compiles import count_compiles


def test_each_new_shape_is_one_program_more():
    arrays = [jnp.ones(n) for n in (3, 5, 6)]
    double = jax.jit(lambda x: 2 * x + 1)
    jax.block_until_ready(double(arrays[0]))
    compiled = count_compiles()
    assert compiled() == 0  # what was compiled before does not count
    double(arrays[0])
    assert compiled() == 0
    double(arrays[1])
    assert compiled() == 1
    later = count_compiles()
    double(arrays[2])
    assert (compiled(), later()) == (2, 1)


def test_a_program_from_the_cache_of_compiled_programs_counts_too():
    """A shape that is not fixed costs tracing and looking up, whatever lies in the cache."""
    x = jnp.ones(7)
    compiled = count_compiles()
    for _ in range(2):
        jax.jit(lambda x: 3 * x + 2)(x)  # a new function each time, and the same program
    assert compiled() == 2
