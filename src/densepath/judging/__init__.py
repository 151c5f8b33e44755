"""What says that one answer is better than another: an endpoint, a local model, a reward, a program."""
