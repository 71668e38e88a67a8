"""The project's own measurements: recipes, leak test, comparison with peers."""
