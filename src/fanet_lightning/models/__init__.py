"""Networks: FANet and S3FD + FPN, their backbones and trained weights."""
