"""What a search may ask for: options, filters, fusion, diversity, explanations and cursors."""
