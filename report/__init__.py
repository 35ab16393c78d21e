"""Reports on predictions: metrics, tables, result.txt and contact sheets."""
