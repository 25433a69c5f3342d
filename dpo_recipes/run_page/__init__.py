"""A run, or several, as one HTML file: what is read of it, the verdict, the sections, the charts, the page."""
