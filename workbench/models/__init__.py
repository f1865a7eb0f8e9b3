"""Loading models, knowing what they are made of, and proving what is read of them."""
