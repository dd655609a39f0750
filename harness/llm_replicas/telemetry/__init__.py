"""What the cluster says of itself during a run: router access logs, pod and event changes."""
