"""llm-replicas: prove that N identical Triton replicas on Kubernetes keep their promises."""

__version__ = "0.1.0"
