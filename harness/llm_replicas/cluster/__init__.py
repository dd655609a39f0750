"""Clusters to run on: how they are brought up, reached and broken."""
