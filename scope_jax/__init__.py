"""SCOPE (arXiv 2602.24110) in JAX: reinforcement learning with verifiable rewards that corrects
failed rollouts at their first wrong step. docs/architecture.md shows the rooms of this package."""
