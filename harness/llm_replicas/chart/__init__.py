"""What the chart makes of values: rendering, rules over rendered objects, the timing predictor, generated documents."""
