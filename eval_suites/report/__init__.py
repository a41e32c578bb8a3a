"""Scores -> what people read: tables in markdown, CSV and LaTeX, charts, and one HTML page."""
