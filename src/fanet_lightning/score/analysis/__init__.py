"""What an AP is made of: attributes, kinds of error."""
