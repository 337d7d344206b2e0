"""Charts in one style, one function a chart.

style        colours, markers and lines of classes; how a figure is made and written
plots        the charts, and which of them a result has
projection   embeddings to two and three dimensions
"""
