"""What ties channels: shapes, dims, their relations, and the dependency groups."""
