"""From links to stored images: a unit of rows, and the later pass over what time may fix."""
