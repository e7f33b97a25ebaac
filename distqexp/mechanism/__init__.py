"""The exponential mechanism on a clipped quadratic: integer grid, noise, the released point, accuracy forecasts."""
