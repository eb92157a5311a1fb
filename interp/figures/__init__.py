"""Plotly figures and tables, made of data frames and arrays. No result type is known here."""
