"""Reading what a model does, and writing it down."""
