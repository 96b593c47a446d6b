"""The only place that knows an engine: transport, vLLM plugin, virtual GPU, simulated engine, workloads.

Importing this package imports nothing heavier than msgspec and pyzmq.
"""
