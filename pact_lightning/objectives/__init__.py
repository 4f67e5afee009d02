"""The objectives, one pure file per term."""
