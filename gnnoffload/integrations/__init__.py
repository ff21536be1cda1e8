"""Where other packages take our layers: one module for each, imported by hand."""
