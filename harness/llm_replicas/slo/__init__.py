"""Service level objectives: the table, the statistics and the verdict; pure functions over plain data."""
