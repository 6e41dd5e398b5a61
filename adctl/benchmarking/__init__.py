"""Benchmark of model files: latency, throughput, memory and cold start, compared with the machine's limits."""
