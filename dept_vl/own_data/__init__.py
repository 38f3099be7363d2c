"""Own data: a table of images with questions, captions or statements becomes a folder that the tasks read."""
