"""The first day on a GPU: equality with the CPU, speed, memory and noise, each in a time box (docs/gpu.md)."""
