"""What a run will need and how long it will take, told before it: from shapes alone, without weights."""
