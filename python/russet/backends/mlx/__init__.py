"""The MLX backend: the forward pass in MLX's arrays. Nothing here imports mlx before backend.py is asked for."""
