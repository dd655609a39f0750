"""Calls to a Triton replica, timed to the byte: HTTP generate, generate_stream (SSE) and gRPC streaming."""
