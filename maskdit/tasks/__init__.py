"""What a run trains: one file per task."""
