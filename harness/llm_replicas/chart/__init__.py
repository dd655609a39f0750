"""What the chart makes of values: rendering, rules over objects, timing, generated documents."""
