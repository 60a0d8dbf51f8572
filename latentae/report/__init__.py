"""Reports: numbers as tables, charts and pages, pictures as grids. Knows no models."""
