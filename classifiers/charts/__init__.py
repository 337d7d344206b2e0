"""Charts in one style, one function a chart."""
