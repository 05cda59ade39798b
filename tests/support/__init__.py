"""What several test files share: tiny models, tiny runs, stand-ins."""
