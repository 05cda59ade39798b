"""Compilations are counted one by one, those of an evaluation apart."""

import jax
import jax.numpy as jnp

from scope_jax.run.compiles import Compiles


def test_each_new_shape_is_one_program_more():
    arrays = [jnp.ones(n) for n in (3, 5, 6)]
    double = jax.jit(lambda x: 2 * x + 1)
    jax.block_until_ready(double(arrays[0]))
    compiles = Compiles()
    assert compiles.count == 0  # what was compiled before does not count
    double(arrays[0])
    assert compiles.count == 0
    double(arrays[1])
    assert compiles.count == 1
    later = Compiles()
    double(arrays[2])
    assert (compiles.count, later.count) == (2, 1)


def test_programs_of_an_evaluation_are_counted_apart():
    arrays = [jnp.ones(n) for n in (4, 8, 9)]
    triple = jax.jit(lambda x: 3 * x + 1)
    compiles = Compiles()
    triple(arrays[0])
    with compiles.apart("evaluation"):
        triple(arrays[1])
    triple(arrays[2])
    assert (compiles.count, compiles.of) == (2, {"evaluation": 1})


def test_a_program_from_the_cache_of_compiled_programs_counts_too():
    """A shape that is not fixed costs tracing and looking up, whatever lies in the cache."""
    x = jnp.ones(7)
    compiles = Compiles()
    for _ in range(2):
        jax.jit(lambda x: 3 * x + 2)(x)  # a new function each time, and the same program
    assert compiles.count == 2
