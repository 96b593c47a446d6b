"""The pages, a file each, and what they share."""
