"""Figures: pure functions from values to Plotly."""
