"""What the zoo asks of the kernel and of the file system."""
