"""Jobs of the app: a queue, a process that holds the model, and what a visitor may ask for."""
