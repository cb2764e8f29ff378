"""Ways to call a stock model and an attached one, by name, and the models: `scene_of`."""
