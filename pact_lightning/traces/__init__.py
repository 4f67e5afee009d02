"""Expert traces: schema, segmentation, levels. Nothing in ``rollout`` may import this package."""
