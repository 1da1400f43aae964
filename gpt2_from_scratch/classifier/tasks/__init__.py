"""What a head can be trained to answer: one file per task."""
