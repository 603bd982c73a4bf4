"""Models: architectures, weights from outside, the bare prediction."""
