"""Charts in one style, one function a chart.

style        colours, markers and lines of classes; how a figure is made and written
plots        the charts
projection   embeddings to two and three dimensions
results      which charts a result has
"""
