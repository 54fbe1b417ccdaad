"""What the user gives as samples, and what a model gives on them."""
