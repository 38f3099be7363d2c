"""Visual regions: boxes from a detector or a file, and the features inside them."""
