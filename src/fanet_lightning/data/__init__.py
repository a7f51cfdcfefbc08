"""Images and labels → samples and batches."""
