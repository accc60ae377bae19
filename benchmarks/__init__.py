"""What is measured, and the last results."""
