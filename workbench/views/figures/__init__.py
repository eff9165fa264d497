"""Figures: for the screen (plotly) and for print (matplotlib)."""
