"""DA-CLIP: CLIP with an image controller, its weights, its views of images, its losses."""
