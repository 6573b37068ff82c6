"""Recipes that make the weights this project ships."""
